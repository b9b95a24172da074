"""Questions made by hand."""

from medtune.data.sample import Message, Sample


def question(name: str, attribute: str, options: list[str], answer: str, image: str) -> Sample:
    turns = (Message("user", f"What is the {attribute}?"), Message("assistant", answer))
    return Sample(name, (image,), turns, {"attribute": attribute, "options": options, "answer": answer})
