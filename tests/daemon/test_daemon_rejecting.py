"""Answers that the served model is unsure of: the factory model is asked, and where it is unsure too nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeClock, manifest, picture, publish_factory, tiny_files
from site_on_disk import COLOURS, Site, run

from edgetune.cli.words import as_text, describe
from edgetune.daemon import metrics
from edgetune.daemon.rejecting import Rejecting
from edgetune.serve.engine import Engine
from edgetune.store.models import Models, publish

SURE = np.array(
    [[0.1, -0.1], [-0.1, 0.1], [0.0, 0.0]], np.float32
)  # red is a cat, green a dog, grey and blue are nothing
UNSURE = 0.001 * SURE
GREY = (110, 110, 110)


def publish_both(state_dir: Path) -> Models:
    """A factory model that knows red from green, and a served version that is unsure of everything."""
    publish_factory(state_dir, weights=SURE)
    made = manifest(("cat", "dog"), kind="adapt", parent=1)
    publish(state_dir / "models", 2, tiny_files(2, 2, UNSURE), made)
    models = Models(state_dir / "models", quarantine=state_dir / "quarantine" / "models")
    models.promote(2)
    return models


def pixels(*colours: tuple[int, int, int]) -> Any:
    """uint8 [N, 8, 8, 3], one colour each."""
    return np.stack([np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3)) for colour in colours])


def test_the_factory_model_answers_what_it_alone_is_sure_of_and_the_rest_is_rejected(tmp_path: Path) -> None:
    """The answer says who gave it; what is kept for probation is the served model's word; it is counted and told."""

    async def play() -> None:
        publish_both(tmp_path / "state")
        async with Site(tmp_path, serving={"reject": 0.9}) as site:
            serving = site.daemon.serving
            known = await serving.predict(picture(COLOURS["cat"], 1), top_k=2, record=True)
            assert (known.label, known.model_version, known.is_rejected) == ("cat", 1, False)
            nothing = await serving.predict(picture(GREY, 1), top_k=2, record=True)
            assert (nothing.label, nothing.model_version, nothing.is_rejected) == (None, 2, True)
            assert len(nothing.top) == 2
            inferred = await serving.infer(None, pixels(GREY, COLOURS["cat"], GREY))
            assert inferred.rejected == (0, 2)
            assert inferred.manifest.version == 2
            assert np.abs(inferred.logits).max() < 1, "the served model's own"
            await serving.flush()
            count = site.daemon.buffer.database.execute
            rows = await site.daemon.store(
                lambda: count("SELECT model_version, confidence FROM predictions").fetchall()
            )
            assert [version for version, _ in rows] == [2, 2]
            assert all(confidence < 0.9 for _, confidence in rows)
            await site.tick()
            status = await site.daemon.status()
            assert status["serving"]["reject"] == {"below": 0.9, "rejected": 3, "by_factory": 2, "trouble": ""}
            assert "2 were answered by the factory model and 3 rejected" in as_text(describe(status))
            values = {name: values for name, _, _, values in metrics.collect(site.daemon)}
            assert values["edgetune_predictions_rejected_total"] == [({}, 3.0)]
            assert values["edgetune_predictions_by_factory_total"] == [({}, 2.0)]

    run(play())


def test_by_default_every_answer_stands_and_a_reload_changes_that(tmp_path: Path) -> None:
    """Then no other model is loaded; switched off again, or not needed for long, its memory is given back."""

    async def play() -> None:
        publish_both(tmp_path / "state")
        async with Site(tmp_path) as site:
            rejecting = site.daemon.serving.rejecting
            answer = await site.daemon.serving.predict(picture(GREY, 1), top_k=2, record=False)
            assert (answer.is_rejected, answer.model_version) == (False, 2)
            assert not rejecting.summary()["rejected"]
            path = site.daemon.config_path
            path.write_text(path.read_text().replace("serving:\n", "serving:\n  reject: 0.9\n"))
            await site.daemon.reload()
            assert (await site.daemon.serving.predict(picture(GREY, 1), top_k=2, record=False)).is_rejected
            await site.tick()
            assert rejecting._factory is not None
            await site.tick(seconds=700)
            assert rejecting._factory is None
            assert (await site.daemon.serving.predict(picture(GREY, 1), top_k=2, record=False)).is_rejected
            rejecting.below = None
            await site.tick()
            assert rejecting._factory is None

    run(play())


def made(root: Path, below: float | None = 0.9, sharpness: float = 1.0) -> tuple[Rejecting, Engine]:
    """The reject option, and the served engine."""
    models = publish_both(root)
    rejecting = Rejecting(
        models=models, threads=1, clock=FakeClock(), below=below, sharpness=lambda version: sharpness * (version == 2)
    )
    return rejecting, Engine.load(models.path(2), threads=1)


def test_the_served_models_confidence_counts_as_it_is_calibrated(tmp_path: Path) -> None:
    """A model whose logits are all too small is sure once that is known; one that does not answer in numbers never is."""
    images = pixels(COLOURS["cat"], GREY)
    rejecting, engine = made(tmp_path / "plain")
    assert sorted(rejecting.doubts(engine, engine.predict(images), images)) == [0, 1]
    rejecting, engine = made(tmp_path / "sharp", sharpness=1000.0)
    assert sorted(rejecting.doubts(engine, engine.predict(images), images)) == [1]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert sorted(rejecting.doubts(engine, nothing, images)) == [0, 1]


def test_a_factory_model_that_cannot_be_asked_rejects_and_is_named(tmp_path: Path) -> None:
    """It is not tried again with each image; where it is what is served, it is not asked twice."""
    images = pixels(COLOURS["cat"])
    rejecting, engine = made(tmp_path)
    file = tmp_path / "models" / "v000001" / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    assert rejecting.doubts(engine, engine.predict(images), images)[0].logits is None
    assert "the factory model cannot be asked" in rejecting.summary()["trouble"]
    file.write_bytes(whole)
    assert rejecting.doubts(engine, engine.predict(images), images)[0].logits is None, "it was given up"
    factory = Engine.load(tmp_path / "models" / "v000001", threads=1)
    grey = pixels(GREY)
    assert rejecting.doubts(factory, factory.predict(grey), grey)[0].logits is None
    assert rejecting.rejected == 3
