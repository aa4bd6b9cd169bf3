"""Whether a namespace's network policies let pods reach what they lean on. Only a policy is read; no packet is sent."""

import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ...components.common.launch.kubernetes.client import ClusterError, at
from ...components.common.storage.config import StorageConfig
from .finding import NotSeenError

Get = Callable[[str], Any]  # a GET of a path of the Kubernetes API, as JSON
_POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
_MESH = "/apis/security.istio.io/v1/namespaces/{}/peerauthentications"
_SPOKEN_TO = ("5000", "8080")  # ports of MLflow and served models


def check_dns(get: Get, namespace: str) -> str:
    """Every pod may ask DNS at the address of its Service: where a cache or the cloud answers, it is no pod's."""
    policies = get(_POLICIES.format(namespace))["items"]
    try:
        spec = get("/api/v1/namespaces/kube-system/services/kube-dns")["spec"]
    except ClusterError as error:
        if error.status == 404:
            raise NotSeenError(
                "no Service kube-dns in kube-system; see what /etc/resolv.conf of a pod names"
            ) from error
        raise
    addresses = spec.get("clusterIPs") or [spec["clusterIP"]]
    for address in addresses:
        if not _reached(policies, address, 53):
            raise NotSeenError(
                f"no policy of {namespace} lets every pod reach {address} on port 53; fine only where pods in "
                "kube-system answer, without a cache on the node: else add the range to your overlay"
            )
    return f"{', '.join(addresses)} on port 53"


def check_store(get: Get, namespace: str, storage: StorageConfig) -> str:
    """Every pod may reach S3, also where its name is that of an endpoint in the cluster's own network."""
    import boto3

    parts = urlsplit(storage.endpoint_url or boto3.client("s3", region_name=storage.region).meta.endpoint_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    policies = get(_POLICIES.format(namespace))["items"]
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise NotSeenError(f"{host} has no address here; pods may know it") from error
    for address in addresses:
        if not _reached(policies, address, port):
            raise NotSeenError(
                f"{host} is {address} here, which no policy of {namespace} lets every pod reach on port {port}: a "
                "private endpoint needs k8s/team/private-endpoints with its range"
            )
    return f"{host} ({', '.join(addresses)}) on port {port}"


def check_mesh(get: Get, namespace: str) -> str:
    """No mesh asks our pods, which take no sidecar, for mutual TLS."""
    for place in dict.fromkeys((namespace, "istio-system")):
        try:
            rules = get(_MESH.format(place))["items"]
        except ClusterError as error:
            if error.status == 404:
                return "no Istio"
            raise
        for rule in rules:
            if at(rule, "spec", "mtls", "mode") == "STRICT":
                ports = at(rule, "spec", "portLevelMtls") or {}
                if any(at(ports, port, "mode") not in ("DISABLE", "PERMISSIVE") for port in _SPOKEN_TO):
                    raise NotSeenError(
                        f"PeerAuthentication {rule['metadata']['name']} of {place} asks for mTLS, which pods without a "
                        f"sidecar do not speak; exempt ports {' and '.join(_SPOKEN_TO)}"
                    )
    return "Istio, without STRICT mTLS for our ports"


def _reached(policies: list[Any], address: str, port: int) -> bool:
    """Whether policies let every pod send to an address; where none says a word about egress, everything is."""
    specs = [policy["spec"] for policy in policies if not policy["spec"].get("podSelector")]
    if not any("Egress" in spec.get("policyTypes", []) for spec in specs):
        return True
    return any(_inside(block, address) for spec in specs for block in _blocks(spec, port))


def _blocks(spec: Any, port: int) -> Iterator[Any]:
    """The address ranges that a policy opens a port to; a rule without peers or ports is for all of them."""
    for rule in spec.get("egress") or []:
        ports = [entry.get("port") for entry in rule.get("ports") or []]
        if not ports or port in ports:
            peers = rule.get("to") or [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]
            yield from (peer["ipBlock"] for peer in peers if "ipBlock" in peer)


def _inside(block: Any, address: str) -> bool:
    ip = ipaddress.ip_address(address)
    among = [ip in ipaddress.ip_network(cidr) for cidr in (block["cidr"], *(block.get("except") or []))]
    return among[0] and not any(among[1:])
