"""Distil all clients' models into one, without data on the server: FedDKD (arXiv 2205.00706).

After local training client k keeps its weights w_k, frozen, as its *teacher*; the server holds the
*student* v, which starts at the parameter average. A DKD step moves v towards the teachers in the
space of the functions that they compute, not of their parameters, with no data on the server:

    client k:  g_k = ∇_v  mean_{x in D_k}  T² KL( softmax(f_{w_k}(x)/T) || softmax(f_v(x)/T) )
    server:    v  <-  ServerOptimizer( v, Σ_k p_k g_k ),      p_k = n_k / Σ n

Repeated, this minimises Σ_k p_k E_{D_k} KL(f_{w_k} || f_v): its minimum is the *neural network map
average* of the teachers. `divergences` holds the KL above and its alternatives, `teacher` the
teacher's logits, computed once a round where that is exact, and `gradient` a client's reply to one step.
"""

from feddkd.dkd.divergences import Divergence, kl, without_true_class
from feddkd.dkd.gradient import Distillation, distillation_gradient
from feddkd.dkd.self_training import OwnPredictions
from feddkd.dkd.task_loss import step_loss
from feddkd.dkd.teacher import can_be_kept, frozen, known_rows, mean_entropy, soft_labels, teacher_logits

__all__ = [
    "Distillation",
    "Divergence",
    "OwnPredictions",
    "can_be_kept",
    "distillation_gradient",
    "frozen",
    "kl",
    "known_rows",
    "mean_entropy",
    "soft_labels",
    "step_loss",
    "teacher_logits",
    "without_true_class",
]
