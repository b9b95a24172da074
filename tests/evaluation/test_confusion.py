import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from medtune.errors import DataError
from medtune.evaluation.confusion import confusion


def test_a_table_by_hand():
    table = confusion(["a", "a", "b", "a", "b"], ["a", "b", None, None, "c"])
    assert table.gold == ("a", "b")
    assert table.answered == ("a", "b", "c")
    assert table.counts == ((1, 1, 0), (0, 0, 1))
    assert table.unread == (1, 1)
    assert table.n == 5


def test_it_is_scikit_learns_where_everything_is_read():
    rng = np.random.default_rng(0)
    gold = [str(one) for one in rng.integers(0, 4, 80)]
    predicted = [str(one) for one in rng.integers(0, 4, 80)]
    table = confusion(gold, predicted)
    assert np.array_equal(np.array(table.counts), confusion_matrix(gold, predicted))
    assert sum(table.unread) == 0


def test_a_value_named_unread_is_not_the_unread_column():
    table = confusion(["unread", "no"], ["unread", None])
    assert table.answered == ("no", "unread")
    assert table.counts == ((0, 0), (0, 1)) and table.unread == (1, 0)


@pytest.mark.parametrize(("gold", "predicted"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_answers_that_do_not_fit_the_questions_are_refused(gold, predicted):
    with pytest.raises(DataError, match="one answer to each question"):
        confusion(gold, predicted)
