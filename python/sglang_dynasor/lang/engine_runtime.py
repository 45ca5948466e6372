"""`RuntimeEndpoint` without HTTP: bodies of /generate requests go to an engine in this process.

Upstream: `sglang/lang/backend/runtime_endpoint.py`; `select` and image handling are inherited.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import get_chat_template, get_chat_template_by_model_path
from sglang.lang.global_config import global_config

from sglang_dynasor.lang.engine_loop import EngineLoop

_LOGPROB_OPTIONS = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)


class EngineRuntime(RuntimeEndpoint):
    """Runs lang states on an offline engine."""

    def __init__(self, engine: Any, chat_template_name: str | None = None) -> None:
        BaseBackend.__init__(self)  # RuntimeEndpoint's own asks a server for its model
        self.engine = engine
        self.loop = EngineLoop(engine)
        self.model_info = {"model_path": engine.tokenizer_manager.model_path}
        self.chat_template = (
            get_chat_template(chat_template_name)
            if chat_template_name
            else get_chat_template_by_model_path(self.model_info["model_path"])
        )

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        output = self._generate_http_request(s, self._body(s, sampling_params))
        return output["text"], output["meta_info"]

    def generate_stream(self, s: Any, sampling_params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        data = {**self._body(s, sampling_params), "stream": True}
        self._add_images(s, data)
        seen = 0
        with self.loop.kept_running():
            outputs = self._outputs(data)
            try:
                while (output := self.loop.call(_next(outputs))) is not None:
                    yield output["text"][seen:], output["meta_info"]
                    seen = len(output["text"])
            finally:
                self.loop.call(outputs.aclose())

    def commit_lazy_operations(self, s: Any) -> None:
        self._generate_http_request(s, {"text": s.text_, "sampling_params": {"max_new_tokens": 0}})

    fill_image = commit_lazy_operations

    def cache_prefix(self, prefix_str: str) -> None:
        self._post({"text": prefix_str, "sampling_params": {"max_new_tokens": 0}})

    def flush_cache(self) -> None:
        self.engine.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        return self.engine.get_server_info()

    def start_profile(self) -> None:
        self.engine.start_profile()

    def stop_profile(self) -> None:
        self.engine.stop_profile()

    def _body(self, s: Any, sampling_params: Any) -> dict[str, Any]:
        self._handle_dtype_to_regex(sampling_params)
        params = sampling_params.to_srt_kwargs()
        params["skip_special_tokens"] = global_config.skip_special_tokens_in_output
        params["spaces_between_special_tokens"] = global_config.spaces_between_special_tokens_in_out
        options = {name: getattr(sampling_params, name) for name in _LOGPROB_OPTIONS}
        given = {name: value for name, value in options.items() if value is not None}
        return {"text": s.text_, "sampling_params": params, **given}

    def _generate_http_request(self, s: Any, data: dict[str, Any]) -> Any:
        # Upstream's `select` sends its requests through this one.
        self._add_images(s, data)
        return self._post(data)

    def _post(self, data: dict[str, Any]) -> Any:
        return self.loop.call(_last(self._outputs(data)))

    def _outputs(self, data: dict[str, Any]) -> AsyncGenerator[Any, None]:
        from sglang.srt.managers.io_struct import GenerateReqInput

        return self.engine.tokenizer_manager.generate_request(GenerateReqInput(**data), None)


async def _last(outputs: AsyncIterator[Any]) -> Any:
    return [output async for output in outputs][-1]


async def _next(outputs: AsyncIterator[Any]) -> Any:
    return await anext(outputs, None)
