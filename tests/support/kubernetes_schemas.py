"""What Kubeflow's published schemas allow, as far as our manifests go: nothing else may be there.

Fields and types are those of kubeflow/mpi-operator's manifests/base/kubeflow.org_mpijobs.yaml
(v2beta1) and kubeflow/trainer's manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml
(v1alpha1), read in November 2026; pods are Kubernetes' own core/v1. An API server drops unknown
fields silently, so a misspelt one would only show as something missing.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Known(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Known):
    name: str = Field(pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


class Resources(Known):
    limits: dict[str, str | int] = {}
    requests: dict[str, str | int] = {}


class Variable(Known):
    name: str
    value: str = ""


class Mount(Known):
    name: str
    mountPath: str


class Claim(Known):
    claimName: str


class Volume(Known):
    name: str
    persistentVolumeClaim: Claim


class Socket(Known):
    port: int


class Probe(Known):
    tcpSocket: Socket


class Container(Known):
    name: str
    image: str
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    workingDir: str = ""
    resources: Resources = Resources()
    volumeMounts: list[Mount] = []
    readinessProbe: Probe | None = None


class Pod(Known):
    containers: list[Container]
    volumes: list[Volume] = []


class Template(Known):
    spec: Pod


class Replicas(Known):
    replicas: int = 1
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"] = "Never"
    template: Template


class RunPolicy(Known):
    cleanPodPolicy: str = "Running"
    backoffLimit: int = 0
    activeDeadlineSeconds: int = 0
    ttlSecondsAfterFinished: int = 0
    suspend: bool = False


class MPIJobSpec(Known):
    slotsPerWorker: int = 1
    mpiImplementation: Literal["OpenMPI", "Intel", "MPICH"] = "OpenMPI"
    launcherCreationPolicy: Literal["AtStartup", "WaitForWorkersReady"] = "AtStartup"
    sshAuthMountPath: str = ""
    runPolicy: RunPolicy = RunPolicy()
    mpiReplicaSpecs: dict[Literal["Launcher", "Worker"], Replicas]


class MPIJob(Known):
    apiVersion: Literal["kubeflow.org/v2beta1"]
    kind: Literal["MPIJob"]
    metadata: Metadata
    spec: MPIJobSpec


class Runtime(Known):
    name: str
    apiGroup: str = "trainer.kubeflow.org"
    kind: str = "ClusterTrainingRuntime"


class Trainer(Known):
    image: str
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    numNodes: int = 1
    numProcPerNode: int | Literal["auto", "cpu", "gpu"] = "auto"
    resourcesPerNode: Resources = Resources()


class TrainJobSpec(Known):
    runtimeRef: Runtime
    trainer: Trainer
    suspend: bool = False


class TrainJob(Known):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec
