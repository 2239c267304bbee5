"""Run a small federation and use its model: `python examples/quickstart.py`."""

import torch

import feddkd

run = feddkd.run({"rounds": 3, "dkd.steps": 10})  # ten clients with one digit each, FedDKD
for row in run.rounds:
    megabytes = row["cumulative_wire_bytes"] / 1e6
    print(f"round {row['round']}: accuracy {row['accuracy']:.1%} after {megabytes:.1f} MB")

images, labels = run.test_set()
with torch.no_grad():
    predicted = run.model(images).argmax(dim=1)  # run.model is a torch.nn.Module
print(f"{(predicted == labels).float().mean():.1%} of {len(labels)} test images are right")
