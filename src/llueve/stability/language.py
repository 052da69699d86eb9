"""English and Spanish words for explanations of incidents."""

from enum import StrEnum
from typing import NamedTuple, Self


class Language(StrEnum):
    """A language that explanations are written in."""

    ENGLISH = "en"
    SPANISH = "es"


class Words(NamedTuple):
    """The same words in both languages."""

    en: str
    es: str

    def of(self, language: Language) -> str:
        """The words in one language."""
        return self.es if language == Language.SPANISH else self.en


class WordedEnum(StrEnum):
    """Keys for files and code, each with its words for people."""

    words: Words

    def __new__(cls, key: str, en: str = "", es: str = "") -> Self:
        """Make a member from its key and its words."""
        member = str.__new__(cls, key)
        member._value_ = key
        member.words = Words(en, es)
        return member
