//! etcd, the API server, the controllers and the scheduler, in the namespace `api`, with certificates of a small
//! authority of the cluster's own and a token for each user.
//!
//! Not for the nodes.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    daemon, kubernetes,
    place::{
        API_ADDRESS, API_PORT, Cluster, FIRST_SERVICE_ADDRESSES, IpFamily, POD_CIDRS, SERVICE_CIDRS,
    },
    progress::Progress,
};
use crate::workspace;

/// Starts it and waits until the API server is ready.
pub fn start(cluster: &Cluster, progress: &Progress) -> Result<()> {
    make_certificates(cluster)?;
    make_users(cluster)?;
    progress.step("certificates and users");
    let etcd = daemon::start_in(
        cluster,
        "api",
        "etcd",
        &workspace::find_program("etcd").context("etcd is not in PATH")?,
        &[
            format!("--data-dir={}", cluster.folder().join("etcd").display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            // What is kept goes with the cluster: nothing is waited for until it is on the disk.
            "--unsafe-no-fsync".to_owned(),
        ],
    );
    let etcd = etcd?;
    let server = run(cluster, "kube-apiserver", &api_server(cluster))?;
    progress.wait("the API server", 60, || {
        etcd.check()?;
        server.check()?;
        let mut question = kubernetes::kubectl(cluster)?;
        let answer = question.args(["get", "--raw", "/readyz"]).output()?;
        Ok(if answer.stdout == b"ok" {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned())
        })
    })?;
    progress.step("API server ready");
    run(
        cluster,
        "kube-controller-manager",
        &controller_manager(cluster),
    )?;
    run(
        cluster,
        "kube-scheduler",
        &[
            kubeconfig_flag(cluster, "system:kube-scheduler"),
            "--leader-elect=false".to_owned(),
        ],
    )?;
    Ok(())
}

fn run(cluster: &Cluster, name: &str, arguments: &[String]) -> Result<daemon::Daemon> {
    daemon::start_in(cluster, "api", name, &kubernetes::program(name)?, arguments)
}

fn api_server(cluster: &Cluster) -> Vec<String> {
    let pki = |name: &str| pki(cluster, name).display().to_string();
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--advertise-address={API_ADDRESS}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", pki("api.crt")),
        format!("--tls-private-key-file={}", pki("api.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("api.crt")),
        format!("--kubelet-client-key={}", pki("api.key")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!(
            "--service-cluster-ip-range={}",
            cluster.ip_family.join(SERVICE_CIDRS)
        ),
        format!("--token-auth-file={}", pki("tokens.csv")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", pki("accounts.key")),
        format!("--service-account-signing-key-file={}", pki("accounts.key")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
    ]
}

fn controller_manager(cluster: &Cluster) -> Vec<String> {
    let pki = |name: &str| pki(cluster, name).display().to_string();
    let mut arguments = vec![
        kubeconfig_flag(cluster, "system:kube-controller-manager"),
        format!("--service-account-private-key-file={}", pki("accounts.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        "--use-service-account-credentials=true".to_owned(),
        "--allocate-node-cidrs=true".to_owned(),
        format!("--cluster-cidr={}", cluster.ip_family.join(POD_CIDRS)),
        format!(
            "--service-cluster-ip-range={}",
            cluster.ip_family.join(SERVICE_CIDRS)
        ),
        "--node-cidr-mask-size-ipv4=24".to_owned(),
        "--leader-elect=false".to_owned(),
    ];
    match cluster.ip_family {
        IpFamily::Dual => arguments.push("--node-cidr-mask-size-ipv6=64".to_owned()),
        IpFamily::Ipv4 => {}
    }
    arguments
}

fn kubeconfig_flag(cluster: &Cluster, user: &str) -> String {
    format!("--kubeconfig={}", cluster.kubeconfig(user).display())
}

fn pki(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.folder().join("pki").join(name)
}

fn make_certificates(cluster: &Cluster) -> Result<()> {
    let names = [
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
        "DNS:localhost",
    ];
    let addresses = [API_ADDRESS, "127.0.0.1"]
        .into_iter()
        .chain(FIRST_SERVICE_ADDRESSES)
        .map(|address| format!("IP:{address}"));
    let names: Vec<String> = names
        .map(str::to_owned)
        .into_iter()
        .chain(addresses)
        .collect();
    fs::write(
        pki(cluster, "api.ext"),
        format!("subjectAltName={}\n", names.join(",")),
    )
    .context("writing the names of the API server")?;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for line in [
        format!("req -x509 {key} -keyout ca.key -out ca.crt -days 3650 -subj /CN=fairlead-cluster"),
        // Of this group kubelets take orders.
        format!("req {key} -keyout api.key -out api.csr -subj /O=system:masters/CN=kube-apiserver"),
        "x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out api.crt -days 3650 -extfile api.ext"
            .to_owned(),
        "ecparam -name prime256v1 -genkey -noout -out accounts.key".to_owned(),
    ] {
        let mut openssl = Command::new("openssl");
        openssl
            .args(line.split_whitespace())
            .current_dir(cluster.folder().join("pki"));
        workspace::run_quietly(&mut openssl, "making certificates")?;
    }
    Ok(())
}

/// Users, by token: a line for the API server and a kubeconfig for each.
fn make_users(cluster: &Cluster) -> Result<()> {
    let mut users = vec![
        ("admin".to_owned(), "system:masters"),
        ("system:kube-controller-manager".to_owned(), ""),
        ("system:kube-scheduler".to_owned(), ""),
        ("system:kube-proxy".to_owned(), ""),
    ];
    users.extend(
        cluster
            .nodes()
            .map(|node| (format!("system:node:{}", node.name()), "system:nodes")),
    );
    let authority = pki(cluster, "ca.crt");
    let mut lines = String::new();
    for (user, group) in users {
        let token = token()?;
        lines += &format!("{token},{user},{user},\"{group}\"\n");
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": cluster.name,
            "clusters": [{"name": cluster.name, "cluster": {
                "server": format!("https://{API_ADDRESS}:{API_PORT}"),
                "certificate-authority-data": base64(&fs::read(&authority)?),
            }}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": user}}],
        });
        write_secret(&cluster.kubeconfig(&user), &kubeconfig.to_string())?;
    }
    write_secret(&pki(cluster, "tokens.csv"), &lines)
}

fn write_secret(path: &std::path::Path, text: &str) -> Result<()> {
    let secret = fs::Permissions::from_mode(0o600);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(secret.mode())
        .open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .with_context(|| path.display().to_string())
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0, |all, byte| all << 8 | u32::from(*byte));
        let group = group << (8 * (3 - chunk.len()));
        for place in 0..4 {
            text.push(if place <= chunk.len() {
                char::from(ALPHABET[(group >> (18 - 6 * place)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_what_is_no_multiple_of_three() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
