"""Names: which language one means, the nearest valid one for an error, and how they are shown."""

import difflib
import re
from collections.abc import Iterable

# Two-letter codes of ISO 639-1 with their codes of ISO 639-3 and 639-2/B, and with the languages of
# a macrolanguage that data sets name in its place (arb for Arabic, cmn for Chinese).
_THREE_LETTERS = """
    aa:aar ab:abk ae:ave af:afr ak:aka,fat am:amh an:arg ar:ara,arb as:asm av:ava ay:aym,ayr
    az:aze,azj ba:bak be:bel bg:bul bi:bis bm:bam bn:ben bo:bod,tib br:bre bs:bos ca:cat ce:che
    ch:cha co:cos cr:cre,cwd cs:ces,cze cu:chu cv:chv cy:cym,wel da:dan de:deu,ger dv:div dz:dzo
    ee:ewe el:ell,gre en:eng eo:epo es:spa et:ekk,est eu:baq,eus fa:fas,per,pes ff:fuc,ful fi:fin
    fj:fij fo:fao fr:fra,fre fy:fry ga:gle gd:gla gl:glg gn:grn,gug gu:guj gv:glv ha:hau he:heb
    hi:hin ho:hmo hr:hrv ht:hat hu:hun hy:arm,hye hz:her ia:ina id:ind ie:ile ig:ibo ii:iii
    ik:esk,ipk io:ido is:ice,isl it:ita iu:ike,iku ja:jpn jv:jav ka:geo,kat kg:kng,kon ki:kik
    kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau,knc ks:kas ku:kmr,kur kv:kom,kpv kw:cor
    ky:kir la:lat lb:ltz lg:lug li:lim ln:lin lo:lao lt:lit lu:lub lv:lav,lvs mg:mlg,plt mh:mah
    mi:mao,mri mk:mac,mkd ml:mal mn:khk,mon mr:mar ms:may,msa,zsm mt:mlt my:bur,mya na:nau nb:nob
    nd:nde ne:nep,npi ng:ndo nl:dut,nld nn:nno no:nor nr:nbl nv:nav ny:nya oc:oci oj:ojg,oji
    om:gaz,orm or:ori,ory os:oss pa:pan pi:pli pl:pol ps:pbt,pbu,pus pt:por qu:que,quz rm:roh
    rn:run ro:ron,rum ru:rus rw:kin sa:san sc:src,srd sd:snd se:sme sg:sag si:sin sk:slk,slo
    sl:slv sm:smo sn:sna so:som sq:alb,als,sqi sr:srp ss:ssw st:sot su:sun sv:swe sw:swa,swh
    ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat tw:twi
    ty:tah ug:uig uk:ukr ur:urd uz:uzb,uzn ve:ven vi:vie vo:vol wa:wln wo:wol xh:xho yi:ydd,yid
    yo:yor za:zha,zyb zh:chi,cmn,zho zu:zul
"""
_TWO_LETTERS = {
    three: two
    for two, _, threes in (entry.partition(":") for entry in _THREE_LETTERS.split())
    for three in threes.split(",")
}
_SCRIPT = re.compile(r"[a-z]{4}")


def printable(line: str) -> str:
    """A line without what would steer a terminal: names come from stores that anybody may write."""
    return "".join(letter if letter.isprintable() else " " for letter in line)


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message that offers the nearest valid name; empty if none is near."""
    by_folded = {word.casefold(): word for word in valid}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f"; did you mean {by_folded[close[0]]!r}?" if close else ""


def primary_language(name: str) -> str:
    """The primary subtag of a language name, with two letters where ISO 639-1 has it.

    `zh-CN`, `zho_Hans` and `cmn` are `zh`; `pt-BR` is `pt`; `eng_Latn` is `en`.
    """
    primary = re.split("[-_]", name, maxsplit=1)[0].casefold()
    return _TWO_LETTERS.get(primary, primary)


def is_known_code(code: str) -> bool:
    """Whether a code is one of ISO 639-1, or the code of three letters of a language with one."""
    return code.casefold() in _TWO_LETTERS or code.casefold() in _TWO_LETTERS.values()


def languages_meant(name: str, known: Iterable[str]) -> list[str]:
    """The known languages that a name means, as they are written there.

    The name itself, in any case and with `-` or `_`. If it is not known, a name without a region
    (`zh`, `zho_Hans`) means every known name of its language whose script is not another.
    """
    names = list(known)
    subtags = _subtags(name)
    same = [lang for lang in names if _subtags(lang) == subtags]
    if same:
        return same
    primary, scripts, others = _parts(subtags)
    if others:
        return []
    return [
        lang
        for lang, (language, script, _) in ((lang, _parts(_subtags(lang))) for lang in names)
        if language == primary and (not script or not scripts or script == scripts)
    ]


def _subtags(name: str) -> list[str]:
    return re.split("[-_]", name.casefold())


def _parts(subtags: list[str]) -> tuple[str, list[str], list[str]]:
    """Primary language, script and all other subtags."""
    scripts = [part for part in subtags[1:] if _SCRIPT.fullmatch(part)]
    return primary_language(subtags[0]), scripts, [x for x in subtags[1:] if x not in scripts]
