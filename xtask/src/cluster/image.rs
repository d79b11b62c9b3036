//! The images that a cluster's nodes are given: those that every cluster has, and those of people.
//!
//! Not for how an image is written.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail, ensure};

use super::place::Cluster;
use crate::image::{Image, file_name};
use crate::workspace;

/// What keeps a pod's namespaces; the kubelet asks for it by this name.
pub const PAUSE: &str = "localhost/pause:1";
/// A shell, `nc`, `wget`, and a web server that says who asks and who answers.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// The images that every cluster has.
pub fn own(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let busybox = workspace::find_program("busybox").context("busybox is not in PATH")?;
    let list = Command::new(&busybox)
        .arg("--list")
        .output()
        .context("asking busybox what it can do")?;
    let links: Vec<String> = String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect();
    let bin = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let answer = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s %s\\n' \"$REMOTE_ADDR\" \"$(hostname)\"\n";
    [
        Image {
            tag: PAUSE,
            programs: vec![&busybox],
            entrypoint: bin(&["/bin/busybox", "sleep", "2147483647"]),
            ..Image::default()
        },
        Image {
            tag: BUSYBOX,
            programs: vec![&busybox],
            entrypoint: bin(&["/bin/httpd", "-f", "-p", "80", "-h", "/www"]),
            links,
            command: Vec::new(),
            files: vec![("www/cgi-bin/who", answer)],
        },
    ]
    .iter()
    .map(|image| image.write(&folder(cluster)))
    .collect()
}

/// Files as an image: an archive as it is, programs in a layer, of which the first is started.
pub fn archive(cluster: &Cluster, files: &[PathBuf], tag: Option<&str>) -> Result<PathBuf> {
    for file in files {
        ensure!(file.is_file(), "{}: there is no such file", file.display());
    }
    let [first, rest @ ..] = files else {
        bail!("an image of no file");
    };
    if first
        .extension()
        .is_some_and(|extension| extension == "tar")
    {
        ensure!(
            tag.is_none() && rest.is_empty(),
            "an archive has its own tag and stands alone"
        );
        return Ok(first.to_owned());
    }
    let name = file_name(first);
    let tag = tag.map_or_else(|| format!("localhost/{name}:latest"), str::to_owned);
    let image = Image {
        tag: &tag,
        programs: files.iter().map(PathBuf::as_path).collect(),
        entrypoint: vec![format!("/bin/{name}")],
        ..Image::default()
    };
    image.write(&folder(cluster))
}

fn folder(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("image")
}
