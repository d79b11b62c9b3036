//! Images without a registry: programs in one layer, with the libraries that they name, as the archive that
//! `docker save` writes.
//!
//! ```text
//!   image.tar:  manifest.json  config.json  layer.tar: bin/PROGRAM, links to it, libraries, small files
//! ```
//!
//! Not for building programs.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::tar::Tar;

/// An image before it is written.
#[derive(Default)]
pub struct Image<'a> {
    pub tag: &'a str,
    pub programs: Vec<&'a Path>,
    pub entrypoint: Vec<String>,
    /// What is appended to it where a container says nothing.
    pub command: Vec<String>,
    /// Other names of the first program in `/bin`.
    pub links: Vec<String>,
    /// Small files: path, text.
    pub files: Vec<(&'a str, &'a str)>,
}

pub fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The libraries that a program is linked with, and the linker; none when it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("starting ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !text.contains("=> not found"),
        "{}: {text}",
        program.display()
    );
    Ok(text.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the path alone for the linker.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    path.starts_with('/')
        .then(|| path.split(" (").next())?
        .map(PathBuf::from)
}

impl Image<'_> {
    /// Writes it into a folder and says where.
    ///
    /// # Errors
    /// A program cannot be read, or a library that it names is not there.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let mut layer = Tar::default();
        for folder in ["bin", "etc", "tmp"] {
            layer.folder(folder)?;
        }
        let mut needed = BTreeSet::new();
        for program in &self.programs {
            let bytes = fs::read(program).with_context(|| program.display().to_string())?;
            layer.file(&format!("bin/{}", file_name(program)), 0o755, &bytes)?;
            needed.extend(libraries(program)?);
        }
        for library in needed {
            let bytes = fs::read(&library).with_context(|| library.display().to_string())?;
            let path = library.display().to_string();
            layer.file(path.trim_start_matches('/'), 0o755, &bytes)?;
        }
        let first = self.programs.first().map(|first| file_name(first));
        for link in &self.links {
            layer.link(&format!("bin/{link}"), &first.clone().unwrap_or_default())?;
        }
        for (path, text) in &self.files {
            layer.file(path, 0o755, text.as_bytes())?;
        }
        let layer = layer.end();
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
        });
        let manifest = serde_json::json!([{
            "Config": "config.json", "RepoTags": [self.tag], "Layers": ["layer.tar"],
        }]);
        let mut archive = Tar::default();
        archive.file("manifest.json", 0o644, manifest.to_string().as_bytes())?;
        archive.file("config.json", 0o644, config.to_string().as_bytes())?;
        archive.file("layer.tar", 0o644, &layer)?;
        let file = folder.join(self.tag.replace(['/', ':'], "_") + ".tar");
        fs::write(&file, archive.end()).with_context(|| file.display().to_string())?;
        Ok(file)
    }
}

/// SHA-256, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> Result<String> {
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting sha256sum")?;
    let mut input = sum.stdin.take().context("writing to sha256sum")?;
    input.write_all(bytes).context("writing to sha256sum")?;
    drop(input);
    let output = sum.wait_with_output().context("reading from sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = text.split_whitespace().next();
    digest.map(str::to_owned).context("sha256sum said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let of = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(of("\tlinux-vdso.so.1 (0x7ffd)"), None);
        assert_eq!(
            of("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            of("\t/lib64/ld-linux-x86-64.so.2 (0x7f)").as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(of("\tstatically linked"), None);
    }
}
