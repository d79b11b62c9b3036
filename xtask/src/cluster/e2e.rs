//! `cargo xtask cluster e2e`: Kubernetes' own tests of the network, on a cluster that is up.
//!
//! The tests, their image and CoreDNS are built once, from their Go modules, and kept under `target/cluster`. The
//! image is what the tests ask for by name: their program `agnhost`, and the tools of this machine that its base
//! image has (`curl`, `nc`, a shell).
//!
//! Not for tests of our own: they are in the crate `tests`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{kubernetes, node, place::Cluster, progress::Progress};
use crate::{image::Image, setup, workspace};

const COREDNS: &str = "v1.12.2";
/// What kube-proxy is for, and what stands on it.
const FOCUS: &str = r"\[sig-network\] (Services|Networking Granular|EndpointSlice|HostPort|Proxy|Traffic Dist|LoadBal)";
/// What we do not balance (SCTP); what breaks the cluster for others; what asks a kube-proxy, a kubelet that evicts
/// pods, or a cloud whose balancers must be cleaned up; and, of services with `externalTrafficPolicy: Local`, session
/// affinity across nodes: there the routers choose the node.
const SKIP: &str = r"SCTP|sctp|\[Disruptive\]|\[Serial\]|kube-proxy|evicted|finalizer|session affinity .* Local traffic policy";

#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose names fit this expression
    #[arg(long, default_value = FOCUS)]
    focus: String,
    /// Not those whose names fit this one
    #[arg(long, default_value = SKIP)]
    skip: String,
}

/// Builds what is missing, and runs the tests.
///
/// # Errors
/// Something cannot be built, or a test fails.
pub fn run(cluster: &Cluster, arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::For::Cluster, setup::For::E2e])?;
    let progress = Progress::start();
    let folder = build(&progress)?;
    for archive in images(&folder)? {
        for node in cluster.nodes() {
            node::import(cluster, node, &archive)?;
        }
    }
    let dns = folder.join("dns.yaml");
    write(&dns, include_str!("dns.yaml"))?;
    let mut apply = kubernetes::kubectl(cluster)?;
    apply.args(["apply", "--filename"]).arg(dns);
    workspace::run_quietly(&mut apply, "installing CoreDNS")?;
    let mut rolled = kubernetes::kubectl(cluster)?;
    rolled.args(["-n", "kube-system", "rollout", "status", "deploy/coredns"]);
    workspace::run_quietly(rolled.arg("--timeout=120s"), "waiting for CoreDNS")?;
    progress.step("CoreDNS runs");
    // All of the tests' images are on the nodes already, whatever they are called elsewhere.
    let here = folder.join("registries.yaml");
    write(
        &here,
        "promoterE2eRegistry: localhost\ngcRegistry: localhost\n",
    )?;
    let mut tests = kubernetes::as_administrator(cluster, folder.join("e2e.test"));
    tests
        .current_dir(&folder)
        .env("KUBE_TEST_REPO_LIST", here)
        .arg(format!(
            "--kubeconfig={}",
            cluster.kubeconfig("admin").display()
        ))
        .arg(format!(
            "--kubectl-path={}",
            kubernetes::program("kubectl")?.display()
        ))
        .args(["--provider=skeleton", "--ginkgo.v", "--ginkgo.no-color"])
        .arg(format!("--ginkgo.focus={}", arguments.focus))
        .arg(format!("--ginkgo.skip={}", arguments.skip));
    workspace::run(&mut tests, "running the tests")
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| file.display().to_string())
}

/// Where everything is, once it is built.
fn build(progress: &Progress) -> Result<PathBuf> {
    let folder = kubernetes::beside("e2e")?;
    let complete = folder.join("complete");
    if complete.exists() {
        return Ok(folder);
    }
    progress.step("building the tests of Kubernetes, and CoreDNS (once; 5 to 10 minutes)");
    kubernetes::module(&folder)?;
    write(&folder.join("e2e_test.go"), include_str!("e2e_test.go"))?;
    write(&folder.join("e2e_tools.go"), include_str!("e2e_tools.go"))?;
    let go = |words: &[&str], doing: &str| {
        let mut go = kubernetes::go(&folder);
        go.env("CGO_ENABLED", "0").env("GOBIN", folder.join("bin"));
        workspace::run_quietly(go.args(words), doing)
    };
    go(&["mod", "tidy"], "collecting the modules of the tests")?;
    let flags = kubernetes::version_flags();
    go(
        &["test", "-c", "-ldflags", &flags, "-o", "e2e.test", "."],
        "building the tests",
    )?;
    let agnhost = "k8s.io/kubernetes/test/images/agnhost";
    go(
        &["build", "-ldflags", "-s -w", "-o", "bin/agnhost", agnhost],
        "building the tests' image",
    )?;
    let coredns = format!("github.com/coredns/coredns@{COREDNS}");
    go(
        &["install", "-ldflags", "-s -w", &coredns],
        "building CoreDNS",
    )?;
    progress.step("built");
    write(&complete, "")?;
    Ok(folder)
}

fn images(folder: &Path) -> Result<Vec<PathBuf>> {
    let module = kubernetes::module_folder(folder)?;
    let read = |path: &str| {
        let file = module.join(path);
        fs::read_to_string(&file).with_context(|| file.display().to_string())
    };
    let bin = folder.join("bin");
    for (tool, name) in [("dash", "sh"), ("nc.openbsd", "nc")] {
        copy(tool, &bin.join(name))?;
    }
    for tool in ["busybox", "curl", "wget"] {
        copy(tool, &bin.join(tool))?;
    }
    let list = Command::new(bin.join("busybox")).arg("--list").output();
    let list = list.context("asking busybox what it can do")?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let applets: Vec<(String, String)> = list
        .lines()
        .filter(|name| !["busybox", "sh", "nc", "wget"].contains(name))
        .map(|name| {
            let text = format!("#!/bin/sh\nexec busybox {name} \"$@\"\n");
            (format!("bin/{name}"), text)
        })
        .collect();
    let by_path = ["agnhost", "agnhost-2"].map(|name| {
        (
            name.to_owned(),
            "#!/bin/sh\nexec /bin/agnhost \"$@\"\n".to_owned(),
        )
    });
    let certificates = ["crt", "key"].map(|kind| format!("localhost.{kind}"));
    let certificates = certificates
        .iter()
        .map(|name| {
            Ok((
                name.clone(),
                read(&format!("test/images/agnhost/porter/{name}"))?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let programs: Vec<PathBuf> = ["agnhost", "sh", "nc", "busybox", "curl", "wget"]
        .map(|name| bin.join(name))
        .into();
    let agnhost = format!(
        "localhost/agnhost:{}",
        read("test/images/agnhost/VERSION")?.trim()
    );
    let pause = format!(
        "localhost/pause:{}",
        pause_version(&read("test/utils/image/manifest.go")?)?
    );
    let texts = applets.iter().chain(&certificates).chain(&by_path);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    [
        Image {
            tag: &agnhost,
            programs: programs.iter().map(PathBuf::as_path).collect(),
            entrypoint: words(&["/agnhost"]),
            command: words(&["pause"]),
            links: Vec::new(),
            files: texts
                .map(|(path, text)| (path.as_str(), text.as_str()))
                .collect(),
        },
        Image {
            tag: &pause,
            programs: vec![&bin.join("busybox")],
            entrypoint: words(&["/bin/busybox", "sleep", "2147483647"]),
            ..Image::default()
        },
        Image {
            tag: "localhost/coredns:1",
            programs: vec![&bin.join("coredns")],
            entrypoint: words(&["/bin/coredns"]),
            ..Image::default()
        },
    ]
    .iter()
    .map(|image| image.write(folder))
    .collect()
}

fn copy(tool: &str, to: &Path) -> Result<()> {
    let program =
        workspace::find_program(tool).with_context(|| format!("{tool} is not in PATH"))?;
    fs::copy(&program, to).with_context(|| to.display().to_string())?;
    Ok(())
}

/// `configs[Pause] = Config{list.GcRegistry, "pause", "3.10.1"}`.
fn pause_version(source: &str) -> Result<String> {
    let line = source
        .lines()
        .find(|line| line.contains("configs[Pause] ="));
    let version = line.and_then(|line| line.rsplit('"').nth(1));
    let version = version.context("the tests' list of images names no pause image")?;
    ensure!(
        version.starts_with(|first: char| first.is_ascii_digit()),
        "a pause image of version {version:?}"
    );
    Ok(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_pause_image_is_read_from_the_list() {
        let line = "\tconfigs[Pause] = Config{list.GcRegistry, \"pause\", \"3.10.1\"}\n";
        assert_eq!(pause_version(line).unwrap(), "3.10.1");
        assert!(pause_version("configs[Agnhost] = Config{}").is_err());
    }
}
