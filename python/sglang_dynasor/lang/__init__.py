"""sgl.lang for programs: functions whose forks carry one program id, over HTTP and offline.

    from sglang_dynasor import lang

    @lang.function(max_branches=8)
    def vote(s, question):
        s += question
        forks = s.fork(8)
        forks += sgl.gen("answer", max_tokens=64)
        forks.join()

    sgl.set_default_backend(lang.DynasorEndpoint("http://127.0.0.1:30000"))
    state = vote.run(question="12+34")  # one program, and in run_batch one per item

Importing this starts nothing, and loads sglang's client side only.
"""

from sglang_dynasor.lang import chat_template
from sglang_dynasor.lang.backends import DynasorEndpoint, EngineBackend
from sglang_dynasor.lang.function import ProgramFunction, function
from sglang_dynasor.lang.scope import ProgramScope, program

__all__ = [
    "DynasorEndpoint",
    "EngineBackend",
    "ProgramFunction",
    "ProgramScope",
    "function",
    "program",
]

chat_template.register()
