//! Work inside another network namespace, on a thread of its own.
//!
//! A thread, because `setns` moves only the calling one: a worker of the runtime would carry every
//! later task into the namespace.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};

use super::Error;

/// Where `ip netns` keeps its names.
const NAMED: &str = "/run/netns";

/// The file of a namespace: a path as it is, a name among those of `ip netns`.
pub fn path(path_or_name: &str) -> PathBuf {
    if path_or_name.contains('/') {
        PathBuf::from(path_or_name)
    } else {
        Path::new(NAMED).join(path_or_name)
    }
}

/// Opens the file that stands for a namespace.
pub fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|error| {
        let doing = format!("opening the network namespace {}", path.display());
        let is_missing = error.kind() == std::io::ErrorKind::NotFound;
        Error::new(doing)(if is_missing {
            std::io::Error::other("there is none; `ip netns list` shows those with a name")
        } else {
            error
        })
    })
}

/// Whether this process is in the network namespace of the host's first process, so that the host's other
/// processes are in it too unless they have one of their own.
///
/// A file below `/proc/PID/net` belongs to a namespace and is the same for all who are in it; unlike
/// `/proc/PID/ns/net` it is shown without a capability.
pub fn is_the_hosts() -> Result<bool, Error> {
    let file = |path: &str| {
        let file = std::fs::metadata(path).map_err(Error::new(format!("looking at {path}")))?;
        Ok((file.dev(), file.ino()))
    };
    Ok(file("/proc/self/net/dev")? == file("/proc/1/net/dev")?)
}

/// The number by which the kernel and its programs know the network namespace of the calling thread.
pub fn cookie() -> Result<u64, Error> {
    let doing = || "asking for the cookie of the network namespace".to_owned();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(Error::new(doing()))?;
    getsockopt(&socket, NetnsCookie).map_err(Error::new(doing()))
}

sockopt_impl!(
    /// `SO_NETNS_COOKIE` (Linux 5.14).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Runs asynchronous work inside a namespace, on a runtime of its own, and waits for it.
pub async fn inside<R, F>(
    namespace: File,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<R, Error>
where
    R: Send + 'static,
    F: Future<Output = Result<R, Error>>,
{
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // When nobody waits any more, the result is of no use.
            let _ = answer.send(run(&namespace, work));
        })
        .map_err(Error::new("starting a thread for a network namespace"))?;
    answered.await.unwrap_or_else(|_| {
        Err(Error::new("working in a network namespace")(
            std::io::Error::other("its thread ended without an answer"),
        ))
    })
}

fn run<R, F>(namespace: &File, work: impl FnOnce() -> F) -> Result<R, Error>
where
    F: Future<Output = Result<R, Error>>,
{
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(Error::new("entering the network namespace"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::new("starting a runtime in a network namespace"))?;
    runtime.block_on(async { work().await })
}
