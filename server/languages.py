"""Whisper's languages by code and by English name, as OpenAI writes them."""

from __future__ import annotations

_NAMED = (
    "en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese tr=turkish"
    " pl=polish ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi fi=finnish"
    " vi=vietnamese he=hebrew uk=ukrainian el=greek ms=malay cs=czech ro=romanian da=danish hu=hungarian ta=tamil"
    " no=norwegian th=thai ur=urdu hr=croatian bg=bulgarian lt=lithuanian la=latin mi=maori ml=malayalam cy=welsh"
    " sk=slovak te=telugu fa=persian lv=latvian bn=bengali sr=serbian az=azerbaijani sl=slovenian kn=kannada"
    " et=estonian mk=macedonian br=breton eu=basque is=icelandic hy=armenian ne=nepali mn=mongolian bs=bosnian"
    " kk=kazakh sq=albanian sw=swahili gl=galician mr=marathi pa=punjabi si=sinhala km=khmer sn=shona yo=yoruba"
    " so=somali af=afrikaans oc=occitan ka=georgian be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic"
    " yi=yiddish lo=lao uz=uzbek fo=faroese ht=haitian-creole ps=pashto tk=turkmen nn=nynorsk mt=maltese sa=sanskrit"
    " lb=luxembourgish my=myanmar bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian ln=lingala"
    " ha=hausa ba=bashkir jw=javanese su=sundanese yue=cantonese"
)
NAMES = dict(part.split("=") for part in _NAMED.split())
_CODES = {name.replace("-", " "): code for code, name in NAMES.items()} | {
    "burmese": "my",
    "valencian": "ca",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "pushto": "ps",
    "panjabi": "pa",
    "moldavian": "ro",
    "moldovan": "ro",
    "sinhalese": "si",
    "castilian": "es",
    "mandarin": "zh",
    "filipino": "tl",
    "iw": "he",
    "jv": "jw",
    "nb": "no",
}


def code(text: str) -> str | None:
    """The code of a language given as code, code with region, or English name; None if there is none."""
    wanted = text.strip().lower()
    bare = wanted.replace("_", "-").split("-")[0]
    for each in (wanted, bare):
        if each in NAMES:
            return each
        if each in _CODES:
            return _CODES[each]
    return None


def name(code: str | None) -> str:
    """The English name of a code, lower-case; the code itself if it is unknown."""
    return NAMES.get(code or "", code or "unknown").replace("-", " ")
