//! Kernel parameters of the calling thread's network namespace, changed only where they differ.

use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use super::Error;

/// A parameter that was changed, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path below `/proc/sys`; device names may hold dots.
    pub key: String,
    /// What it was.
    pub from: String,
    /// What it is.
    pub to: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (was {})", self.key, self.to, self.from)
    }
}

/// Makes this node forward IPv4 and IPv6; returns what was different.
///
/// A device that learns its routes from router advertisements goes on doing so: the kernel stops
/// listening, and forgets what it heard, on a node that begins to forward, unless `accept_ra` is 2
/// (Documentation/networking/ip-sysctl.rst).
pub fn forwarding() -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    if !is("net/ipv6/conf/all/forwarding", "1") {
        for device in listening_devices()? {
            changes.extend(set(&format!("net/ipv6/conf/{device}/accept_ra"), "2")?);
        }
    }
    changes.extend(set_all(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?);
    Ok(changes)
}

/// The devices that listen to router advertisements as long as this node does not forward.
fn listening_devices() -> Result<Vec<String>, Error> {
    let folder = Path::new("/proc/sys/net/ipv6/conf");
    let doing = || format!("listing {}", folder.display());
    let mut devices = Vec::new();
    for device in fs::read_dir(folder).map_err(Error::new(doing()))? {
        let device = device.map_err(Error::new(doing()))?.file_name();
        let device = device.to_string_lossy().into_owned();
        let is_device = !["all", "default", "lo"].contains(&device.as_str());
        if is_device && is(&format!("net/ipv6/conf/{device}/accept_ra"), "1") {
            devices.push(device);
        }
    }
    devices.sort();
    Ok(devices)
}

/// Whether a parameter has this value; one that cannot be read has not.
fn is(key: &str, value: &str) -> bool {
    fs::read_to_string(Path::new("/proc/sys").join(key)).is_ok_and(|found| found.trim() == value)
}

/// The ports that the host's own connections take theirs from (`ip_local_port_range`).
pub fn local_ports() -> Result<RangeInclusive<u16>, Error> {
    let key = "net/ipv4/ip_local_port_range";
    let doing = || format!("reading {key}");
    let text = fs::read_to_string(Path::new("/proc/sys").join(key)).map_err(Error::new(doing()))?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(Error::new(doing())(io::Error::other(format!(
            "not a range: {text:?}"
        )))),
    }
}

/// The release of the running kernel, such as `6.12.48`.
pub fn kernel_release() -> Result<String, Error> {
    let key = "kernel/osrelease";
    let text = fs::read_to_string(Path::new("/proc/sys").join(key))
        .map_err(Error::new(format!("reading {key}")))?;
    Ok(text.trim().to_owned())
}

/// Sets parameters by their path below `/proc/sys`; returns those that were different.
pub fn set_all(wanted: &[(&str, &str)]) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for (key, value) in wanted {
        changes.extend(set(key, value)?);
    }
    Ok(changes)
}

/// Sets one parameter; `None` when it was so already.
pub fn set(key: &str, value: &str) -> Result<Option<Change>, Error> {
    let path = Path::new("/proc/sys").join(key);
    let from = fs::read_to_string(&path).map_err(Error::new(format!("reading {key}")))?;
    let from = from.trim().to_owned();
    if from == value {
        return Ok(None);
    }
    fs::write(&path, value).map_err(Error::new(format!("setting {key} to {value}")))?;
    Ok(Some(Change {
        key: key.to_owned(),
        from,
        to: value.to_owned(),
    }))
}
