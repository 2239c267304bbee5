"""The one list of what the Grafana dashboard shows."""

from __future__ import annotations

from panel import OF_CLIENT, STATE_COLORS, Panel, Query, Row

RUN_ROW = Row(
    "Run",
    (
        Panel(
            "State",
            "stat",
            "none",
            "The state of each run: waiting (for its first clients), running, paused (too few clients), completed, failed or stopped.",
            (Query("feddkd_run_state{RUN} == 1", "{{state}}"),),
            width=4,
            colors=STATE_COLORS,
        ),
        Panel(
            "Round",
            "stat",
            "none",
            "The current round, from 1, and the rounds that the run will have.",
            (Query("feddkd_current_round{RUN}", "round"), Query("feddkd_target_rounds{RUN}", "of")),
            width=4,
        ),
        Panel(
            "Progress",
            "gauge",
            "percentunit",
            "Completed rounds over planned rounds.",
            (Query('feddkd_rounds_total{RUN, outcome="completed"} / ignoring (outcome) feddkd_target_rounds{RUN}'),),
            width=4,
        ),
        Panel(
            "Time left",
            "stat",
            "s",
            "The rounds that are left times the mean duration of a round. Early stopping may end the run sooner.",
            (Query("run:feddkd_remaining:seconds{RUN}"),),
            width=4,
        ),
        Panel(
            "Best accuracy",
            "stat",
            "percentunit",
            "The best accuracy of any round's model, on the server's test set if there is one.",
            (Query("feddkd_best_accuracy_ratio{RUN}"),),
            width=4,
        ),
        Panel(
            "Bytes so far",
            "stat",
            "bytes",
            "All bytes of the run on the wire, in both directions, joins and late replies included.",
            (Query("sum without (direction, exchange) (feddkd_wire_bytes_total{RUN})"),),
            width=4,
        ),
        Panel(
            "Firing alerts",
            "table",
            "none",
            "Alerts that fire now. The runbook (docs/runbook.md) has a section for each: what it means and what to do.",
            (Query('ALERTS{alertstate="firing", alertname=~"Feddkd.*"}', "{{alertname}}"),),
            width=16,
        ),
        Panel(
            "Age of the open round",
            "lines",
            "s",
            "How long the open round has taken, beside the 95th percentile of the rounds before. "
            "Far above it, an exchange waits for a site.",
            (
                Query("run:feddkd_round_age:seconds{RUN}", "open round"),
                Query("run:feddkd_round_duration_seconds:p95{RUN}", "p95 of rounds"),
            ),
        ),
    ),
)
LEARNING_ROW = Row(
    "Learning",
    (
        Panel(
            "Accuracy",
            "lines",
            "percentunit",
            "Accuracy of the last global model: on the server's test set, and on the examples that the clients hold out.",
            (Query("feddkd_accuracy_ratio{RUN}", "{{evaluated_by}}"), Query("feddkd_best_accuracy_ratio{RUN}", "best")),
        ),
        Panel(
            "Loss",
            "lines",
            "none",
            "Mean cross-entropy of the last global model in nats, and the clients' loss in local training. A gap in a line is a loss that "
            "is not finite.",
            (Query("feddkd_loss{RUN}", "{{evaluated_by}}"), Query("feddkd_training_loss{RUN}", "local training")),
        ),
        Panel(
            "Distillation loss",
            "lines",
            "none",
            "The clients' distillation loss at the first and at the last DKD step of a round. The difference is what the steps gained.",
            (Query("feddkd_dkd_loss_initial{RUN}", "first step"), Query("feddkd_dkd_loss{RUN}", "last step")),
        ),
    ),
)
COST_ROW = Row(
    "What a round costs",
    (
        Panel(
            "Bytes a round, by exchange",
            "bars",
            "bytes",
            "Mean bytes on the wire for each completed round, in both directions, by the kind of exchange. `deliver` happens once a run.",
            (Query("exchange:feddkd_wire_bytes:per_round{RUN}", "{{exchange}}"),),
        ),
        Panel(
            "Bytes of the last round",
            "stat",
            "bytes",
            "Bytes on the wire of the last completed round. Down is towards the clients, up is towards the server.",
            (Query("feddkd_round_wire_bytes{RUN}", "{{direction}}"),),
            width=4,
        ),
        Panel(
            "Bytes for a point of accuracy",
            "stat",
            "bytes",
            "All bytes so far over the best accuracy in percent. Compare runs of the same task only.",
            (Query("run:feddkd_wire_bytes:per_accuracy_point{RUN}"),),
            width=4,
        ),
        Panel(
            "Bytes a second, by exchange",
            "lines",
            "Bps",
            "Bytes on the wire in both directions, over two minutes. Bytes are counted when their exchange is complete.",
            (Query("sum without (direction) (rate(feddkd_wire_bytes_total{RUN}[2m]))", "{{exchange}}"),),
        ),
        Panel(
            "Duration of a round",
            "lines",
            "s",
            "Median and 95th percentile of the rounds of the run so far, read from a histogram: exact to a factor of 1.7.",
            (Query("run:feddkd_round_duration_seconds:p50{RUN}", "p50"), Query("run:feddkd_round_duration_seconds:p95{RUN}", "p95")),
        ),
        Panel(
            "Duration of an exchange, p50",
            "bars",
            "s",
            "Median time from the broadcast to the reduced result, by the kind of exchange.",
            (Query("exchange:feddkd_exchange_duration_seconds:p50{RUN}", "{{exchange}}"),),
        ),
        Panel(
            "Duration of an exchange, p95",
            "bars",
            "s",
            "The 95th percentile of the same times. Far above the median, a few sites or a bad link decide how long a round takes.",
            (Query("exchange:feddkd_exchange_duration_seconds:p95{RUN}", "{{exchange}}"),),
        ),
    ),
)
SITES_ROW = Row(
    "Sites",
    (
        Panel(
            "Clients by state",
            "lines",
            "none",
            "Clients that are idle, work, or are lost.",
            (Query("feddkd_clients{RUN}", "{{state}}"),),
        ),
        Panel(
            "Which site is slow",
            "bars",
            "s",
            "The ten sites whose last reply took longest, in any exchange: computing, transfer and waiting. A round waits for the first.",
            (Query("topk(10, max without (exchange) (feddkd_site_last_seconds{RUN}))", "{{client}}"),),
        ),
        Panel(
            "Which site is lost",
            "table",
            "none",
            "Sites that took part in the run and are not connected now.",
            (Query('feddkd_site_state{RUN, state="lost"} == 1', "{{client}}"),),
        ),
        Panel(
            "Slowness beside the median site",
            "bars",
            "none",
            "The last reply's time over that of the median site in the same exchange. Needs three sites to say something.",
            (Query("topk(10, client:feddkd_site_slowness:ratio{RUN})", "{{client}}"),),
            limits=(2, 3),
        ),
        Panel(
            "Exchanges missed in the last hour",
            "bars",
            "percentunit",
            "Share of the exchanges of the last hour that the site was asked for and did not answer.",
            (Query("topk(10, client:feddkd_site_missing:ratio1h{RUN})", "{{client}}"),),
            limits=(0.05, 0.2),
        ),
        Panel(
            "Outliers",
            "bars",
            "none",
            "In how many consecutive exchanges a site's contribution was an outlier. Empty where no rule looks for outliers.",
            (Query("topk(10, feddkd_site_outlier_exchanges{RUN} > 0)", "{{client}}"),),
            limits=(1, 3),
        ),
        Panel(
            "Accuracy by site",
            "bars",
            "percentunit",
            "Accuracy of the last global model on the examples that each site holds out: the ten worst.",
            (Query("bottomk(10, feddkd_site_accuracy_ratio{RUN})", "{{client}}"),),
        ),
        Panel(
            "Labels that a site's teacher contradicts",
            "bars",
            "percentunit",
            "Share of a site's labels that differ from what its own model says. Far above the others: the labels may be wrong.",
            (Query("topk(10, feddkd_site_label_disagreement_ratio{RUN})", "{{client}}"),),
        ),
        Panel(
            "Refused joins",
            "lines",
            "none",
            "Joins that the server refused within the last 15 minutes, by reason.",
            (Query("increase(feddkd_refused_joins_total{RUN}[15m])", "{{reason}}"),),
        ),
    ),
)
CLIENTS_ROW = Row(
    "At the sites",
    (
        Panel(
            "What the clients do",
            "lines",
            "none",
            "Clients that connect, wait for the server, or compute: of those that have --metrics-port.",
            (Query("sum by (state) (feddkd_client_state)", "{{state}}"),),
        ),
        Panel(
            "Share of the time that a client computes",
            "bars",
            "percentunit",
            "Over two minutes. A client near 100 % is the one that the others wait for.",
            (Query(f"rate(feddkd_client_computing_seconds_total[2m]) {OF_CLIENT}", "{{client}}"),),
        ),
        Panel(
            "Reconnections in the last hour",
            "bars",
            "none",
            "How often a client had to connect again. Many of them point to its network.",
            (Query(f"clamp_min(increase(feddkd_client_connections_total[1h]) - 1, 0) {OF_CLIENT}", "{{client}}"),),
            limits=(3, 10),
        ),
    ),
)
HOST_ROW = Row(
    "Server",
    (
        Panel(
            "Certificates",
            "stat",
            "s",
            "How long each certificate is valid. After that its owner cannot connect. `No data` without TLS.",
            (Query("feddkd_certificate_expiry_time_seconds{RUN} - time()", "{{instance}} {{role}}"),),
            width=6,
            limits=(14 * 86400, 2 * 86400),
            worse_below=True,
        ),
        Panel(
            "Memory",
            "lines",
            "bytes",
            "Resident memory of the process. It grows with the model and the clients, and not with the rounds.",
            (Query("process_resident_memory_bytes{RUN} and on (job, instance) feddkd_build_info"),),
            width=6,
        ),
        Panel(
            "Processor",
            "lines",
            "percentunit",
            "Processor time of the process per second: 100 % is one core.",
            (Query("rate(process_cpu_seconds_total{RUN}[2m]) and on (job, instance) feddkd_build_info"),),
            width=6,
        ),
        Panel(
            "Open files",
            "lines",
            "percentunit",
            "Open file descriptors over their limit. Each connection takes one.",
            (Query("process_open_fds{RUN} / process_max_fds{RUN} and on (job, instance) feddkd_build_info"),),
            width=6,
            limits=(0.6, 0.8),
        ),
    ),
)
ROWS = (RUN_ROW, LEARNING_ROW, COST_ROW, SITES_ROW, CLIENTS_ROW, HOST_ROW)
