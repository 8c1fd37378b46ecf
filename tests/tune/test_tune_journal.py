"""The journal of a search, and the rungs that are worked out from it, without Ray running."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from searches import Verdict, ended, verdicts

from core.command import Refused
from tune.asha import ResumableASHA
from tune.journal import WORST, Journal

# the journal -----------------------------------------------------------------------------------


def test_a_journal_is_read_back_as_it_was_written(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("session")
        journal.write("start", 1, changes={"options.layers": 2})
        journal.write("epoch", 1, epoch=1, objective=0.5, scores={"MAE": 0.5})
        journal.write("epoch", 1, epoch=2, objective=0.7, scores={"MAE": 0.7})
        journal.write("start", 2, changes={})
        journal.write("epoch", 2, epoch=1, objective=0.4, scores={"MAE": 0.4})
        journal.write("end", 2, state="diverged", reason="nan")
    with Journal(path) as again:
        assert again.records == journal.records
        assert again.sessions == 1
        assert [record.number for record in again.unfinished()] == [1]
        assert (again.records[1].best, again.records[1].best_epoch) == (0.5, 1)
        assert again.ranking() == []  # one runs, the other diverged


def test_a_journal_from_before_the_objective_had_its_name_is_read(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("start", 1, changes={})
        journal.write("epoch", 1, epoch=1, objective=0.5, scores={"MAE": 0.5})
    path.write_text(path.read_text().replace('"objective"', '"badness"'))
    with Journal(path) as journal:
        assert journal.records[1].best == 0.5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "it: Input should be"),
        ("{", "line 2 is no usable JSON"),
        ("\udcff", "line 2 is no usable JSON"),
        ('{"event": "end", "event": "end"}', "'event' is there twice"),
        ('{"trial": 1, "time": 1}', "event: Field required"),
        ('{"event": ["end"], "trial": 1, "time": 1}', "event: Input should be a valid string"),
        ('{"event": "end", "trial": "1", "time": 1, "state": "failed"}', "trial: Input should"),
        ('{"event": "end", "trial": 1, "time": 1, "state": "ended"}', "state: Input should be"),
        ('{"event": "start", "trial": 1, "time": 1}', "changes: Field required"),
        (
            '{"event": "epoch", "trial": 1, "time": 1, "epoch": 1, "objective": "x", "scores": {}}',
            "objective: Input should be a valid number",
        ),
        ('{"event": "test", "trial": 1, "time": 1, "scores": {"MAE": null}}', "scores.MAE: Input"),
        ('{"event": "checkpoint", "trial": 1, "time": 1, "path": 3}', "path: Input should"),
    ],
)
def test_a_line_that_is_no_event_is_named_and_the_file_left_as_it_was(
    tmp_path: Path, line: str, reason: str
):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("start", 1, changes={})
    body = path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n"
    path.write_bytes(body)
    with pytest.raises(Refused, match=f"{path}, line 2") as refused:
        Journal(path)
    assert reason in str(refused.value)
    assert path.read_bytes() == body


def test_a_pipe_in_place_of_a_journal_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(Refused, match=r"journal.jsonl is a named pipe"):
        Journal(tmp_path / "journal.jsonl")


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_a_line_that_was_cut_off_counts_as_not_written_and_spoils_nothing_after_it(
    tmp_path: Path, cut: int
):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write("start", 1, changes={})
        journal.write("end", 1, state="finished", reason="")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert journal.records[1].state == "running"
        journal.write("start", 2, changes={})
    with Journal(path) as journal:
        assert sorted(journal.records) == [1, 2]
        assert journal.records[1].state == "running"


def test_trials_are_ranked_by_their_best_epoch_and_the_earlier_of_equals_comes_first(
    tmp_path: Path,
):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.records = {
            1: ended(1, [0.9, 0.3, 0.8]),
            2: ended(2, [0.3], "stopped"),
            3: ended(3, [0.1], "diverged"),
            4: ended(4, [0.2]),
            5: ended(5, [], "failed"),
        }
        assert [record.number for record in journal.ranking()] == [4, 1, 2]
        assert journal.ranking()[1].scores["MAE"] == 0.3


# rungs -----------------------------------------------------------------------------------------


def reports(rungs: ResumableASHA, name: str, values: list[float]) -> tuple[int, str]:
    """Let a trial report; (its epochs, the last decision)."""
    trial = SimpleNamespace(trial_id=name)
    rungs.on_trial_add(None, trial)
    action, best, epoch = "CONTINUE", math.inf, 0
    for epoch, value in enumerate(values, 1):
        best = min(best, value)
        action = rungs.on_trial_result(
            None, trial, {"epoch": epoch, "best": best, "objective": value}
        )
        if action == "STOP":
            break
    return epoch, action


def new_rungs(journal: Journal) -> ResumableASHA:
    rungs = ResumableASHA(journal, epochs=9, grace=1, reduction=3)
    rungs.set_search_properties("best", "min")
    return rungs


TRIALS = [
    [0.9, 0.8, 0.5, 0.4],
    [0.7, 0.75, 0.6],
    [0.5, 0.45, 0.3, 0.2],
    [0.95],
    [0.6],
    [0.49, 0.48, 0.47],
]


def test_rungs_are_the_same_after_a_restart(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        first = new_rungs(journal)
        for number, values in enumerate(TRIALS, 1):
            epochs, action = reports(first, f"trial {number}", values)
            journal.records[number] = ended(
                number, values[:epochs], "stopped" if action == "STOP" else "finished"
            )
        assert {record.state for record in journal.trials()} == {"stopped", "finished"}
        again = new_rungs(journal)
        assert again.rungs() == first.rungs()
        assert [milestone for milestone, _ in again.rungs()] == [9, 3, 1]
        newcomer = [0.65, 0.6, 0.5]
        assert reports(again, "new", newcomer) == reports(first, "new", newcomer) == (1, "STOP")
    with Journal(tmp_path / "empty.jsonl") as journal:
        assert reports(new_rungs(journal), "new", newcomer)[1] == "CONTINUE"


def test_a_trial_that_is_to_go_on_leaves_its_place_on_the_rungs_until_it_reports_again(
    tmp_path: Path,
):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.records = {1: ended(1, [0.5, 0.4, 0.3]), 2: ended(2, [0.9], "running")}
        rungs = new_rungs(journal)
        assert [list(scores) for _, scores in rungs.rungs()] == [[], ["trial 1"], ["trial 1"]]
        assert reports(rungs, "x", [0.9, 0.8]) == (1, "STOP")


def test_a_trial_that_failed_takes_no_place_on_the_rungs(tmp_path: Path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        rungs = new_rungs(journal)
        trial = SimpleNamespace(trial_id="bad")
        rungs.on_trial_add(None, trial)
        rungs.on_trial_complete(None, trial, {"epoch": 1, "best": WORST, "state": "diverged"})
        assert all(not scores for _, scores in rungs.rungs())


@pytest.mark.parametrize("reduction", [2, 3])
def test_verdicts_are_those_that_can_be_worked_out_from_the_journal(tmp_path: Path, reduction: int):
    """The check that whole searches are put to: right ones pass it, wrong ones do not."""
    path = tmp_path / "journal.jsonl"
    values = np.random.default_rng(3).uniform(size=(24, 9))
    for trials in (range(1, 13), range(13, 25)):
        with Journal(path) as journal:
            journal.write("session")
            rungs = ResumableASHA(journal, epochs=9, grace=1, reduction=reduction)
            rungs.set_search_properties("best", "min")
            for number in trials:
                epochs, action = reports(rungs, f"new {number}", list(values[number - 1]))
                journal.write("start", number, changes={})
                for epoch in range(1, epochs + 1):
                    journal.write(
                        "epoch",
                        number,
                        epoch=epoch,
                        objective=values[number - 1, epoch - 1],
                        scores={},
                    )
                journal.write(
                    "end",
                    number,
                    state="stopped" if action == "STOP" and epochs < 9 else "finished",
                )
    found = verdicts(path, epochs=9, reduction=reduction)
    decided = [verdict for verdict in found if verdict.taken]
    assert all(verdict.due == verdict.taken for verdict in decided)
    assert {verdict.taken for verdict in decided} == {"go on", "stop"}
    assert any(verdict.known_before for verdict in decided)
    for kind, instead in (
        ("stop", ""),
        ("go on", "stopped"),
    ):  # let one go on that was stopped, and stop another
        chosen = next(verdict for verdict in decided if verdict.taken == kind)
        forged = list(forge(path.read_text().splitlines(), chosen, instead))
        (tmp_path / "forged.jsonl").write_text("\n".join(forged))
        again = verdicts(tmp_path / "forged.jsonl", epochs=9, reduction=reduction)
        assert [v for v in again if v.taken and v.due != v.taken]


def forge(lines: list[str], verdict: Verdict, instead: str) -> Iterator[str]:
    """The journal with another end of one trial after the epoch of this verdict."""
    past = False
    for line in lines:
        event = json.loads(line)
        own = event["trial"] == verdict.trial
        if not (own and past):
            yield line
        elif event["event"] == "end":
            more = {
                "event": "epoch",
                "trial": verdict.trial,
                "epoch": verdict.epoch + 1,
                "objective": 0.5,
            }
            yield from [] if instead else [json.dumps(more)]
            yield json.dumps({**event, "state": instead or event["state"]})
        past = past or (own and event["event"] == "epoch" and event["epoch"] == verdict.epoch)
