"""Questions of three tasks for the tests of routers."""

TASKS = ("classification", "counting", "detection")
QUESTIONS = {
    "classification": [
        "What is the diagnosis? A: benign, B: malignant",
        "Which class is it? A: normal, B: abnormal",
        "Choose the right option. A: yes, B: no",
        "What is shown? A: monocyte, B: lymphocyte",
    ],
    "counting": [
        "How many cells are in the image?",
        "Count the cells in this image.",
        "Give the number of cells.",
        "How many nuclei are visible?",
    ],
    "detection": [
        "Return the bounding box [x_min, y_min, x_max, y_max] of the lesion.",
        "Locate the lesion as [x_min, y_min, x_max, y_max].",
        "Give the coordinates [x_min, y_min, x_max, y_max] of the tumour.",
        "Where is the mass? Answer with [x_min, y_min, x_max, y_max].",
    ],
}
NO_TASK = ["zxq brf", "the weather is nice", "hello", "tell me a story", "qqq image", "thanks a lot"]


def rows() -> tuple[list[str], list[str | None]]:
    """Texts and their tasks, those of no task last."""
    pairs: list[tuple[str, str | None]] = [(text, task) for task, texts in QUESTIONS.items() for text in texts]
    pairs += [(text, None) for text in NO_TASK]
    return [text for text, _ in pairs], [task for _, task in pairs]
