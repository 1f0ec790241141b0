"""The part of Kubeflow's published schemas that our manifests use; other fields are errors.

Fields and types are those of kubeflow/mpi-operator's manifests/base/kubeflow.org_mpijobs.yaml
(v2beta1) and kubeflow/trainer's manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml
(v1alpha1), read in November 2026; pods are Kubernetes' own core/v1. An API server drops unknown
fields silently, so a misspelt one would only show as something missing.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str = Field(pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


class Resources(Strict):
    limits: dict[str, str | int] = {}
    requests: dict[str, str | int] = {}


class Variable(Strict):
    name: str
    value: str = ""


class Mount(Strict):
    name: str
    mountPath: str


class Claim(Strict):
    claimName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim


class Socket(Strict):
    port: int


class Probe(Strict):
    tcpSocket: Socket


class Container(Strict):
    name: str
    image: str
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    workingDir: str = ""
    resources: Resources = Resources()
    volumeMounts: list[Mount] = []
    readinessProbe: Probe | None = None


class Pod(Strict):
    containers: list[Container]
    volumes: list[Volume] = []


class Template(Strict):
    spec: Pod


class Replicas(Strict):
    replicas: int = 1
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"] = "Never"
    template: Template


class RunPolicy(Strict):
    cleanPodPolicy: str = "Running"
    backoffLimit: int = 0
    activeDeadlineSeconds: int = 0
    ttlSecondsAfterFinished: int = 0
    suspend: bool = False


class MPIJobSpec(Strict):
    slotsPerWorker: int = 1
    mpiImplementation: Literal["OpenMPI", "Intel", "MPICH"] = "OpenMPI"
    launcherCreationPolicy: Literal["AtStartup", "WaitForWorkersReady"] = "AtStartup"
    sshAuthMountPath: str = ""
    runPolicy: RunPolicy = RunPolicy()
    mpiReplicaSpecs: dict[Literal["Launcher", "Worker"], Replicas]


class MPIJob(Strict):
    apiVersion: Literal["kubeflow.org/v2beta1"]
    kind: Literal["MPIJob"]
    metadata: Metadata
    spec: MPIJobSpec


class Runtime(Strict):
    name: str
    apiGroup: str = "trainer.kubeflow.org"
    kind: str = "ClusterTrainingRuntime"


class Trainer(Strict):
    image: str
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    numNodes: int = 1
    numProcPerNode: int | Literal["auto", "cpu", "gpu"] = "auto"
    resourcesPerNode: Resources = Resources()


class TrainJobSpec(Strict):
    runtimeRef: Runtime
    trainer: Trainer
    suspend: bool = False


class TrainJob(Strict):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec
