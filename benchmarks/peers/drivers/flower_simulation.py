"""The FedAvg work through Flower's Ray simulation; runs where flwr[simulation] and torch are installed.

python flower_simulation.py WORK.npz ROUNDS OUT.npz PROCESSES
"""

import os
import sys

if __name__ == "__main__":
    os.environ.update(zip(("SIMULATION_WORK", "SIMULATION_ROUNDS", "SIMULATION_OUT"), sys.argv[1:4], strict=True))
    processes = int(sys.argv[4])
    from flower_simulation_app import client_app, server_app
    from flwr.simulation import run_simulation
    from simulation_work import Work

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=Work(sys.argv[1]).cohort,  # as many as a round asks: Flower looks through all of them again and again
        backend_config={
            "init_args": {"num_cpus": processes, "num_gpus": 0},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},  # the default, 2, leaves one actor on two cores
        },
    )
