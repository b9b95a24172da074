"""Words that the mini models know in addition to those of a cell's attributes."""

#: Words in addition to the attributes' values, so that copying and matching are learnt for any word.
WORDS = (
    "cat", "dog", "house", "tree", "water", "stone", "green", "yellow", "white", "black", "large", "thin", "thick",
    "left", "right", "upper", "lower", "normal", "mild", "severe", "cell", "nucleus", "blood", "image", "scan", "lung",
    "heart", "skin", "bone", "brain", "one", "two", "three", "four", "five", "six",
)  # fmt: skip

#: Common words of instructions about images, in addition to those in the conversations about cells.
GENERAL = """
a about all also am an analysis analyze and any are area as ask assessment at attached attributes be below between body
brief briefly by can care carefully case cells change characteristics clear clinical colour common complete concise
content could create degree depicted detail detailed details determine diagnosis did different display do does during
each examine explain expert features few find findings first following for from full generate give given has have help
how if illustrate impression in include information inspect interpret is it its key kind large less list look made main
make may medical microscope microscopy more most morphology my name no not notable note observations observe observed
of on one only or other our out overview parts patient photo photograph picture please present presented provide
question read region report result review same sample say scan section see seen sentence sentences should show shown
shows side slide smear some specimen stain stained state structure study such summarize summary tell that the their
them there these they this those to type under up use visible visual was we were what when where which white who why
will with word words would write yes you your
"""
