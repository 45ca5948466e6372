"""Words around a picked option, in English, German, Spanish, French, Chinese and Japanese.

Every constant is a regular expression. Cues are for lower-case text, their alternatives begin with
plain letters: a search for them then skips what begins with no such letter.
"""

WORD_CHARACTER = r"A-Za-z0-9_\u00c0-\u024f"
"""The characters of Latin words, for a character class."""


def _phrases(spaced: str, unspaced: str) -> str:
    """One of the phrases; `unspaced` ones need no blank around them."""
    return rf"(?:(?<![{WORD_CHARACTER}])(?i:{spaced})(?![{WORD_CHARACTER}])|{unspaced})"


# What names the answer.
ANSWER_CUE = (
    r"answers?|ans|antwort|antworten|l\u00f6sung|respuestas?|r\u00e9ponses?|reponse"
    "|答案|正确选项|正确的|答え|正解|正答|解答|回答"
)

# What says that an option is picked.
PICK_CUE = (
    r"choose|chose|pick|picking|picked|select|selecting|selected|go with|going with|went with"
    r"|opt for|correct choice|correct option|correct statement|correct letter|correct one"
    r"|right choice|right option|right one|best choice|best option|best one|final choice"
    r"|richtig|korrekt|richtige option|richtige aussage|w\u00e4hle|nehme"
    r"|correcta|elijo|escojo|selecciono|bonne|correcte|bon choix|choisis|opte pour"
    "|选择|选|選ぶのは|選択"
)

# What names an option, picked or not.
OPTION_CUE = (
    r"choice|option|statement|aussage|wahl|opci\u00f3n|opcion|inciso|choix|proposition"
    "|选项|選択肢"
)

# What may stand between a cue and its letter.
FILLER = _phrases(
    r"is|are|either|both|would be|should be|must be|has to be|will be|can only be|therefore|thus"
    r"|hence|then|clearly|definitely|indeed|simply|obviously|most likely|probably|the|correct"
    r"|right|best|final|one|option|choice|letter|answer|statement|number"
    r"|to (?:the|this) (?:question|problem)"
    r"|ist|lautet|w\u00e4re|muss|die|der|das|buchstabe|m\u00f6glichkeit|daher|also|somit|richtige"
    r"|es|ser\u00eda|debe ser|la|el|opci\u00f3n|opcion|letra|inciso|correcta|alternativa"
    r"|est|serait|doit \u00eatre|le|lettre|correcte|finale|donc|proposition",
    "应该|应当|应|就|是|为|為|选项|选择|选|選択肢|は|が",
)

# What may follow a picked letter that could be an article or a pronoun.
FUNCTION_WORD = (
    r"(?i:because|since|as|and|or|is|are|was|which|for|due|by|based|if|when|while|but|not|then|with"
    r"|from|that|so|therefore|thus|although|though|unlike|over|it|being|has|weil|da|denn|ist|und"
    r"|oder|porque|ya|pues|es|y|o|parce|puisque|est|et|ou"
    r"|car (?:ils?|elles?|l[ae]?|les|c|ce|cette|on|une?|en|nous))"
)

# What calls an option or an answer wrong.
WRONG = (
    r"wrong|incorrect|false|untrue|invalid|impossible|eliminated|excluded|ruled out"
    r"|falsch|unm\u00f6glich|incorrect[ao]s?|fals[ao]s?|incorrecte|fausse|faux"
)
_VERB = r"is|are|was|looks|seems|must be|has to be|can be|would be|ist|w\u00e4re|es|est"

# What stands before, and behind, an option that is no answer.
REJECTED_BEFORE = _phrases(
    r"not|neither|nor|never|cannot be|\w+n['\u2019]t(?: be)?|rather than|instead of|unlike|over"
    r"|except|eliminates?|eliminated|excludes?|rules? out|ruled out|ruling out|discard|reject"
    r"|nicht|statt|au\u00dfer|no es|ni|descarto|descartamos|pas|exclut",
    "不是|不选|并非|排除|ではなく",
)
REJECTED_AFTER = (
    rf"[ \t:]*(?i:or\s+\(?[a-j]\)?\?|(?:(?:{_VERB})\s+)?(?:\w+ly\s+|also\s+|auch\s+)?(?:{WRONG})\b"
    rf"|(?:{_VERB})\s+(?:not|out|nicht|too)\b|isn['\u2019]t|cannot|can['\u2019]t|doesn['\u2019]t"
    r"|(?:does|would|could|will) not|(?:would|could|wo)n['\u2019]t|fails|contradicts"
    r"|no es|n['\u2019]est pas)"
    "|(?:选项)?(?:是|为)?(?:错|不对|不正确|不是)|(?:は|が)?(?:間違|誤|不正解|違)"
)

# What stands behind an option that is the answer.
CONFIRMED_AFTER = (
    r"\s?(?i:(?:is|must be|ist|es|est)\s+(?:\w+ly\s+)?(?:the |die |la |el )?(?:only )?"
    r"(?:correct|right|true|best|answer|richtig|correct[ao]|respuesta|correcte|bonne|vraie)"
    r"(?![\w-]))|(?:选项)?(?:是|为)?(?:正确|对的)|(?:は|が)?(?:正解|正しい|正答|答え)|を選"
)
