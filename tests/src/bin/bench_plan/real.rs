//! A real API server and its etcd, with the objects of a cluster, and an agent that starts on it.
//!
//! A change is timed from before it is written to the API server: what that and etcd take is in it.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fairlead_tests::netns::{Netns, veth};
use fairlead_tests::report::{Figures, Report};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::cluster::{Agent, Size, Teller, Wires, around};
use super::{DEEP, Goals, ms, one_by_one};

/// How many requests are under way at a time while the cluster is filled.
const AT_ONCE: usize = 32;
/// What its figures are called.
const NAME: &str = "real API server, 5,000 x 20";

/// An API server that is filled, by a client within its namespace.
struct Real {
    runtime: Runtime,
    client: kube::Client,
}

impl Teller for Real {
    fn tell(&self, slice: &str) -> Result<()> {
        let slice = object(slice)?;
        let name = slice.metadata.name.clone().unwrap_or_default();
        let api = self.api("endpointslices")?;
        let put = async { api.replace(&name, &PostParams::default(), &slice).await };
        self.runtime
            .block_on(put)
            .with_context(|| format!("writing EndpointSlice {name}"))?;
        Ok(())
    }
}

impl Real {
    fn open(kubeconfig: &Path) -> Result<Self> {
        // Of one thread, the one that has entered the server's namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(async {
            let way = Kubeconfig::read_from(kubeconfig)?;
            let options = KubeConfigOptions::default();
            let way = kube::Config::from_custom_kubeconfig(way, &options).await?;
            anyhow::Ok(kube::Client::try_from(way)?)
        })?;
        Ok(Self { runtime, client })
    }

    /// The objects of a kind: those of our namespace, or those of none.
    fn api(&self, plural: &str) -> Result<Api<DynamicObject>> {
        let (group, version, kind) = match plural {
            "nodes" => ("", "v1", "Node"),
            "services" => ("", "v1", "Service"),
            "endpointslices" => ("discovery.k8s.io", "v1", "EndpointSlice"),
            "ciliumbgppeeringpolicies" => ("cilium.io", "v2alpha1", "CiliumBGPPeeringPolicy"),
            other => anyhow::bail!("a cluster has no {other} here"),
        };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}")
                .trim_start_matches('/')
                .to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Ok(match plural {
            "services" | "endpointslices" => {
                Api::namespaced_with(self.client.clone(), "default", &resource)
            }
            _ => Api::all_with(self.client.clone(), &resource),
        })
    }

    /// Makes the objects, each with its status.
    fn make(&self, plural: &str, objects: impl Iterator<Item = String>) -> Result<()> {
        let api = &self.api(plural)?;
        let made = futures::stream::iter(objects).map(|text| async move {
            let object = object(&text)?;
            let name = object.metadata.name.clone().unwrap_or_default();
            let made = api.create(&PostParams::default(), &object).await;
            made.with_context(|| format!("making {plural} {name}"))?;
            if let Some(status) = object.data.get("status") {
                let status = Patch::Merge(serde_json::json!({ "status": status }));
                api.patch_status(&name, &PatchParams::default(), &status)
                    .await
                    .with_context(|| format!("status of {plural} {name}"))?;
            }
            anyhow::Ok(())
        });
        self.runtime
            .block_on(made.buffer_unordered(AT_ONCE).try_collect())
    }

    fn fill(&self, size: Size) -> Result<()> {
        for (plural, objects) in around() {
            self.make(plural, objects.into_iter())?;
        }
        self.make("services", (0..size.services).map(Size::service))?;
        let slices = (0..size.services).map(|service| size.slice(service, size.backends, 0));
        self.make("endpointslices", slices)
    }
}

/// An object as it is made: without what the server says.
fn object(text: &str) -> Result<DynamicObject> {
    let mut value: Value = serde_json::from_str(text)?;
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.retain(|key, _| !matches!(key.as_str(), "resourceVersion" | "creationTimestamp"));
    }
    Ok(serde_json::from_value(value)?)
}

/// Fills the server, starts an agent on it, and changes endpoints one by one.
pub fn bench(netns: &OsStr, kubeconfig: &Path) -> Result<Report> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "loading programs needs root"
    );
    let netns = netns.to_str().context("a namespace is called otherwise")?;
    let server = Netns::existing(netns);
    server.enter(|| on(&server, kubeconfig))?
}

#[expect(clippy::print_stderr, reason = "it speaks to a person")]
fn on(server: &Netns, kubeconfig: &Path) -> Result<Report> {
    let size = DEEP;
    let real = Real::open(kubeconfig)?;
    let began = Instant::now();
    real.fill(size)?;
    let filled = ms(began);
    eprintln!("bench: filled in {:.0} s", filled / 1e3);

    let wires = Wires::make()?;
    veth((&wires.node, "api"), (server, "node1"))?;
    for (netns, link, address) in [
        (&wires.node, "api", "172.30.0.1"),
        (server, "node1", "172.30.0.2"),
    ] {
        netns.ip(&format!("address add {address}/24 dev {link}"))?;
        netns.ip(&format!("link set {link} up"))?;
    }
    // Where the server's kubeconfig says that it is.
    wires.node.ip("route add 172.31.0.2/32 via 172.30.0.2")?;
    let kubeconfig = std::fs::read_to_string(kubeconfig)?;

    let began = Instant::now();
    let agent = Agent::start(size, wires, &kubeconfig)?;
    agent.wait_for_all()?;
    let from_nothing = ms(began);
    let there = agent.backends()?;
    let wanted = (size.services * size.backends) as usize;
    ensure!(
        there >= wanted,
        "{there} backends of {wanted} are in the kernel"
    );

    let mut report = Report::default();
    let goals = Goals {
        from_nothing_s: 20.0,
        change_ms: 50.0,
        withdrawal_ms: 50.0,
    };
    let fill = Figures::of(
        format!("{NAME}: filling it, by this program"),
        "ms",
        &[filled],
    );
    report.figures.push(fill);
    one_by_one(NAME, &agent, &real, from_nothing, &goals, &mut report)?;
    Ok(report)
}
