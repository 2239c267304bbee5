"""Provisions NVIDIA FLARE on this machine, and runs the exchange as a job; runs where nvflare is installed.

    python nvflare_job.py --workspace DIR --port 8002 --clients 4 --rounds 4 --elements 10 --tensors 1 [--tuned]

Run it in the folder that holds the controller and the client's script. Its gRPC driver is not the default: the project
file below asks for it. `--tuned` removes the two seconds that a client sleeps after each task.
"""

import argparse
import os
from pathlib import Path

PROJECT = """\
api_version: 3
name: exchange
connection_security: clear
participants:
  - {{name: server, type: server, org: peers, fed_learn_port: {port}}}
{sites}
  - {{name: admin@nvidia.com, type: admin, org: peers, role: project_admin}}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
    args: {{template_file: [master_template.yml, aws_template.yml, azure_template.yml]}}
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {{config_folder: config, scheme: grpc}}
  - path: nvflare.lighter.impl.cert.CertBuilder
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"""

TUNED = {"server": {"task_request_interval": 0.02}}
"""Seconds that a client waits before it asks for its next task; the default is 2."""


STARTED_S = 10
"""Seconds until the services are asked for anything; in the default, 3, two cores have not started five of them."""


def job_of(options):
    from nvflare.client.config import ExchangeFormat
    from nvflare.fuel.utils.constants import FrameworkType
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.script_runner import ScriptRunner
    from nvflare_controller import MeasuredFedAvg

    job = FedJob(name="exchange", min_clients=options.clients)
    job.to_server(MeasuredFedAvg(options.clients, options.rounds, options.elements, options.tensors))
    if options.tuned:
        job.to_server(TUNED)
    script = ScriptRunner(script="nvflare_client.py", framework=FrameworkType.NUMPY, server_expected_format=ExchangeFormat.NUMPY)
    job.to_clients(script)
    return job


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    for name in ("port", "clients", "rounds", "elements", "tensors"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tuned", action="store_true")
    options = parser.parse_args()
    workspace = options.workspace.resolve()
    os.environ["NVFLARE_POC_WORKSPACE"] = str(workspace / "poc")  # read when nvflare is imported
    from nvflare.recipe import poc_env

    sites = "\n".join(f"  - {{name: site-{rank + 1}, type: client, org: peers}}" for rank in range(options.clients))
    project = workspace / "project.yml"
    project.write_text(PROJECT.format(port=options.port, sites=sites), encoding="utf-8")
    poc_env.SERVICE_START_TIMEOUT = STARTED_S
    environment = poc_env.PocEnv(num_clients=options.clients, project_conf_path=str(project), extra={"login_timeout": 60})
    try:
        print("result:", environment.get_job_result(environment.deploy(job_of(options)), timeout=1800))
    finally:
        environment.stop(clean_up=False)


if __name__ == "__main__":
    main()
