//! `fairlead-cni install FOLDER`: the program puts itself where a container runtime looks for it. An image has no
//! shell to do it with.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::PROGRAM;

/// Runs the words of a person, or of an init container: no runtime has started us.
pub fn main(words: &[OsString]) -> ExitCode {
    let mut out = io::stderr();
    // Nothing is left to do when stderr is closed.
    match words {
        [verb, folder] if verb == "install" => match install(Path::new(folder)) {
            Ok(file) => {
                let _ = writeln!(out, "{PROGRAM}: {} is installed", file.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                let folder = Path::new(folder).display();
                let _ = writeln!(out, "{PROGRAM}: installing into {folder}: {error}");
                ExitCode::from(2)
            }
        },
        [] => {
            let _ = writeln!(
                out,
                "{PROGRAM} {}: a CNI plugin, started by a container runtime with CNI_COMMAND set; `{PROGRAM} install FOLDER` copies it",
                env!("CARGO_PKG_VERSION")
            );
            ExitCode::SUCCESS
        }
        _ => {
            let _ = writeln!(out, "usage: {PROGRAM} install FOLDER");
            ExitCode::from(2)
        }
    }
}

/// Copies this program, in one step for those who start it meanwhile.
fn install(folder: &Path) -> io::Result<PathBuf> {
    let program = fs::read("/proc/self/exe")?;
    let file = folder.join(PROGRAM);
    if fs::read(&file).is_ok_and(|there| there == program) {
        return Ok(file);
    }
    // A plugin that runs cannot be written over, and half of one must not be started.
    let new = folder.join(format!(".{PROGRAM}.new"));
    fs::write(&new, program)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::rename(&new, &file)?;
    Ok(file)
}
