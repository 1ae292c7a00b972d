"""Words that no demonstration and no question of the tabletop has, and that a language model knows.

The list was fixed before any policy was measured. A colour word is in it if what people call so, in the survey of
Munroe (2010, "Color Survey Results", xkcd.com), is nearest to the same one of the tabletop's colours by hue and by
distance in CIELAB, and no dictionary calls it another colour of the tabletop. A shape word names a thing whose outline
is that shape and no other one of the tabletop.
"""

COLOR_SYNONYMS = {
    **dict.fromkeys(("crimson", "scarlet", "ruby", "maroon"), "red"),
    **dict.fromkeys(("azure", "navy", "sapphire"), "blue"),
    **dict.fromkeys(("emerald", "jade"), "green"),
    "golden": "yellow",
    "violet": "purple",
    "tangerine": "orange",
    "turquoise": "cyan",
}
SHAPE_SYNONYMS = {
    **dict.fromkeys(("disc", "ball"), "circle"),
    **dict.fromkeys(("box", "cube"), "square"),
    **dict.fromkeys(("pyramid", "wedge"), "triangle"),
    **dict.fromkeys(("pentagram", "starfish"), "star"),
}
SYNONYMS = {**COLOR_SYNONYMS, **SHAPE_SYNONYMS}
# Words that were on the list of candidates, and why they are not used
LEFT_OUT = {
    "indigo": "the survey's is nearest to purple, and dictionaries call it a blue",
    "lavender": "the survey's is nearest to purple by hue, and to pink in CIELAB",
}


def names_with(word: str) -> tuple[str, str]:
    """How an object is named by the word that was demonstrated, and by its synonym: nothing else says which it is."""
    pattern = "the {} object" if word in COLOR_SYNONYMS else "the {}"
    return pattern.format(SYNONYMS[word]), pattern.format(word)


__all__ = ["COLOR_SYNONYMS", "LEFT_OUT", "SHAPE_SYNONYMS", "SYNONYMS", "names_with"]
