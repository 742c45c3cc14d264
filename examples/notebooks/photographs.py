# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From photographs to a checked INT8 artifact
#
# You train a network on photographs of solar cells, look at what it sees, and export it to an INT8 file whose
# accuracy is measured. Needs `pip install 'iformer[train,elpv,onnx]'`.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from elpv_dataset.utils import load_dataset
from PIL import Image

import iformer

# %% tags=["parameters"]
folder = Path("notebook")  # everything goes here
step = 4  # take every fourth photograph
settings = {"model": "iformer_t", "weights": "none", "recipe": "elpv", "epochs": 20, "size": 128}
export_settings: dict = {}

# %% [markdown]
# ## The photographs
#
# One sub-folder per class is all that training needs.

# %%
images, defect_probabilities, _ = load_dataset()
for number in range(0, len(images), step):
    name = "defective" if defect_probabilities[number] >= 0.5 else "functional"
    path = folder / "photos" / name / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[number]).save(path)
photos = folder / "photos"
print({each.name: len(list(each.iterdir())) for each in sorted(photos.iterdir())})

# %% [markdown]
# ## Train
#
# A line for each epoch appears below. The run folder has the networks, the log and a report.

# %%
run = iformer.train(photos, out=folder / "run", overwrite=True, **settings)
print(run)

# %%
epochs = [record["epoch"] for record in run.history]
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for axis, name, title in zip(axes, ("loss", "top1"), ("Loss", "Top-1 accuracy, %"), strict=True):
    axis.plot(epochs, [record[f"val_{name}"] for record in run.history], marker="o", label="validation")
    axis.set(xlabel="epoch", title=title)
    axis.xaxis.get_major_locator().set_params(integer=True)
plt.show()

# %% [markdown]
# ## Look at predictions
#
# Green: the answer is right; red: it is wrong.

# %%
paths = [path for cell in sorted(photos.iterdir()) for path in sorted(cell.iterdir())[:4]]
figure, axes = plt.subplots(2, 4, figsize=(9, 5), layout="constrained")
for axis, answer in zip(axes.flat, iformer.predict(run, paths), strict=True):
    truth = answer.path.parent.name
    colour = "green" if answer.name == truth else "red"
    axis.imshow(Image.open(answer.path), cmap="gray")
    axis.set_title(f"{answer.name} {answer.score:.0%}\ntruth: {truth}", color=colour, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Export to INT8
#
# Training photographs calibrate the artifact. The validation photographs are then answered by the artifact in ONNX
# Runtime; layers return to higher precision until the accuracy holds.

# %%
artifact = iformer.export(
    run, to="onnx", out=folder, precision="int8", calibration=photos, images=photos, **export_settings
)
own, now = artifact.accuracy["network"]["top1"], artifact.accuracy["metrics"]["top1"]
print(f"{artifact.path}: top-1 {now:.2f} %, the network {own:.2f} %")

# %% [markdown]
# The same photographs, answered by the network and by the artifact:

# %%
scores = [[answer.score for answer in iformer.predict(model, paths)] for model in (run, artifact)]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
places = np.arange(len(paths))
for offset, values, label in zip((-0.2, 0.2), scores, ("network", "INT8 artifact"), strict=True):
    axis.bar(places + offset, values, width=0.4, label=label)
axis.set(xlabel="photograph", ylabel="probability of the answer", ylim=(0, 1.25), xticks=places)
axis.legend(loc="upper center", ncols=2)
plt.show()
