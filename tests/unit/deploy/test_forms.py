"""Every form is written, compared, and runs; what there is no form of is refused."""

import pytest
import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy.forms import FORMS, PRECISIONS, Writer, check_form
from anyformer.deploy.quantize import Calibration

from .small_nets import build, images, runs_here

EVERY = [(runtime, precision) for runtime, precisions in FORMS.items() for precision in precisions]
CALIBRATION = Calibration(images=images(32, seed=1), held_out=images(50, seed=2), max_loss=100.0)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return Writer(build(), images(1), tmp_path_factory.mktemp("forms"), calibration=CALIBRATION, threads=1)


@pytest.mark.parametrize(("runtime", "precision"), EVERY)
def test_every_form_runs_and_is_as_near_to_the_model_as_its_precision(runtime, precision, writer):
    if not runs_here(runtime, precision):
        pytest.skip(f"no {precision} in {runtime} here")
    form = writer.write(runtime, precision)
    with torch.no_grad():
        want = build()(images(8, seed=3))
    error = ((form.run(images(8, seed=3)) - want).abs().max() / want.abs().max()).item()
    assert {"float32": 0.0, "bfloat16": 1e-5, "int8": 1e-4}[precision] <= error
    assert error <= {"float32": 1e-5, "bfloat16": 5e-2, "int8": 0.5}[precision]
    assert all(file.is_file() for file in form.files)
    assert form.size_bytes == sum(file.stat().st_size for file in form.files) > 0
    assert (form.max_error is None) == (precision == "int8") == (form.judgement is not None)


def test_every_precision_has_a_form_and_the_others_are_refused():
    assert {precision for _, precision in EVERY} == set(PRECISIONS)
    with pytest.raises(UsageError, match="onnx is written in float32 or int8, not in bfloat16"):
        check_form("onnx", "bfloat16")
    with pytest.raises(UsageError, match="torch is written in float32 or bfloat16, not in int8"):
        check_form("torch", "int8")


def test_int8_is_refused_without_pictures_and_where_it_loses_too_much(writer, tmp_path):
    bare = Writer(build(), images(1), tmp_path)
    bare._onnx = writer._onnx
    with pytest.raises(UsageError, match="int8 needs real pictures for its scales"):
        bare.write("onnx", "int8")
    strict = Writer(
        build(),
        images(1),
        tmp_path,
        calibration=Calibration(images=images(8), held_out=images(50, seed=2), max_loss=-1.0),  # must gain a point
    )
    strict._onnx = writer._onnx
    with pytest.raises(AnyformerError, match=r"the int8 form for onnx loses .* of the model's predictions"):
        strict.write("onnx", "int8")
