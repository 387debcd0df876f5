"""What a fit to labelled texts leaves behind beside the model: its score, its mistakes, and a baseline."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anyformer.core.model import Model
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.fit.costs import Costs
from anyformer.fit.outcome import Finisher
from anyformer.fit.report import Mistake, write_report
from anyformer.fit.scoring import Where, imbalance, scored, summary
from anyformer.fit.text_classes_material import TextClassesMaterial, time_text

FINAL_LATENCY_SECONDS = 1.5
SHOWN = 300  # characters of a text that was taken for another class
HASHED = 2**18  # columns of n-grams
MOST = 20_000  # texts that the baseline learns from, and is tested on, at most
MISTAKE = ("file", "label", "predicted", "score")


class TextClassesFinisher(Finisher):
    """The outcome of a fit to labelled texts."""

    material: TextClassesMaterial
    mistakes: list[Mistake]

    def validated(self, model: Model) -> dict[str, Any]:
        """The accuracy of a model on the validation part."""
        outputs, targets = self.material.validated(model)
        return summary(self.material.aim, outputs, targets)

    def export(self, model: Model, costs: Costs) -> tuple[dict[str, bytes], dict[str, Any], Costs, Model]:
        """The model is used as it is; a text is timed again."""
        timed = time_text(model, self.material.example(), FINAL_LATENCY_SECONDS)
        return {}, {}, replace(costs, latency_ms=timed), model

    def told(self, used: Model, *, interrupted: bool) -> dict[str, Any]:
        """Accuracy, confusion and mistakes on the test part, the baseline there, and how the texts were read."""
        data = self.material
        part = data.split.validation if interrupted else data.split.test
        where = Where(data.texts.classes, data.texts.names.__getitem__, text=self._text)
        found = scored(data.aim, data.outputs_of(used, part), data.texts.labels[part], where, part)
        self.mistakes = found.mistakes
        return {
            "kind": "classes",
            "metric": data.aim.metric,
            "test": None if interrupted else found.score,
            "split": {
                "train": len(data.split.train),
                "validation": len(data.split.validation),
                "test": len(data.split.test),
                "seed": self.memory.asked["seed"],
                "digest": data.split.digest(),
            },
            "baseline": None if interrupted else self._baseline(),
            "confusion": found.confusion,
            "columns": None,
            "mistakes": [{key: getattr(mistake, key) for key in MISTAKE} for mistake in found.mistakes],
            "data": {
                "source": self.source,
                "texts": len(data.texts),
                "classes": list(data.texts.classes),
                "median": data.example().shape[1],
                "digest": self.memory.asked["data"],
                "notes": imbalance(data.texts.notes, data.aim),
            },
        }

    def page(self, report: dict[str, Any]) -> None:
        """See :func:`anyformer.fit.report.write_report`."""
        write_report(report, self.mistakes, self.folder)

    def _baseline(self) -> dict[str, Any]:
        """Logistic regression on counts of byte n-grams, as the test part has them."""
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import LogisticRegression

        data = self.material
        count: Any = HashingVectorizer(
            analyzer="char", ngram_range=(1, 4), n_features=HASHED, decode_error="strict", lowercase=False
        )

        def rows(part: Tensor) -> Any:
            # latin-1 makes one character of every byte
            return count.transform([data.texts.text(place).tobytes().decode("latin-1") for place in part.tolist()])

        train, test = (part[:: -(-len(part) // MOST)] for part in (data.split.train, data.split.test))
        model: Any = LogisticRegression(C=100.0, max_iter=1000)
        model.fit(rows(train), data.texts.labels[train].numpy())
        outputs = torch.nn.functional.one_hot(torch.from_numpy(model.predict(rows(test))), len(data.texts.classes))
        name = "logistic regression on hashed n-grams of 1 to 4 bytes"
        return {"name": name, **summary(data.aim, outputs.float(), data.texts.labels[test])}

    def _text(self, position: int) -> str:
        """The beginning of a text; bytes that are none as the sign for that."""
        text = (
            ByteTokenizer().to_bytes(self.material.texts.text(position)[: 4 * SHOWN].tolist()).decode(errors="replace")
        )
        return text[:SHOWN] + ("…" if len(text) > SHOWN else "")
