//! Archives, the same each time that they are made of the same files.
//!
//! Not for reading them.

use anyhow::{Result, ensure};

/// A POSIX archive (`ustar`), all of it root's, with no times: the same files make the same digest.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    const BLOCK: usize = 512;

    pub fn folder(&mut self, path: &str) -> Result<()> {
        self.header(path, 0o755, 0, b'5', "")
    }

    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.header(path, 0o777, 0, b'2', target)
    }

    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.header(path, mode, bytes.len(), b'0', "")?;
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(Self::BLOCK), 0);
        Ok(())
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * Self::BLOCK, 0);
        self.0
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, kind: u8, target: &str) -> Result<()> {
        ensure!(
            path.len() <= 100 && target.len() <= 100,
            "{path}: too long a name for an archive"
        );
        let mut block = [0; Self::BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000");
        // The checksum is made with spaces in its own place.
        put(148, b"        ");
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn tar_reads_what_is_written() {
        let mut tar = Tar::default();
        tar.folder("bin").unwrap();
        tar.file("bin/a", 0o755, b"hello").unwrap();
        tar.link("bin/b", "a").unwrap();
        let mut list = Command::new("tar")
            .args(["-tvf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        list.stdin.take().unwrap().write_all(&tar.end()).unwrap();
        let listed = String::from_utf8(list.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert!(
            lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" bin"),
            "{listed}"
        );
        assert!(
            lines[1].starts_with("-rwxr-xr-x") && lines[1].ends_with(" bin/a"),
            "{listed}"
        );
        assert!(lines[2].ends_with(" bin/b -> a"), "{listed}");
    }
}
