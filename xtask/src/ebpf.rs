//! The one place that decides how the datapath's object is built.
//!
//! `rustc` has a BPF back end, but no rustup channel ships `core` for it. Two roads lead around that:
//!
//! - **prebuilt**: Debian's `rustc-web` with `libstd-rust-web-dev-bpf` carries `core` compiled for
//!   `bpfel-unknown-none`. Nothing is rebuilt; this is the road that `cargo xtask setup` paves where apt is.
//! - **nightly**: a rustup nightly with the `rust-src` component compiles `core` along (`-Z build-std`).
//!
//! Both end in `bpf-linker`. `FAIRLEAD_EBPF_ROAD=prebuilt|nightly` (`debian` is another word for the first)
//! forces one. This file is a module of `xtask` and, by `#[path]`, of `control/build.rs`, so that plain
//! `cargo build` walks the same road; therefore it uses `std` only.
//!
//! Not for installing what is missing: that is `setup`.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the variable that forces a road.
pub const ROAD_VARIABLE: &str = "FAIRLEAD_EBPF_ROAD";
/// Tells `dataplane-ebpf/build.rs` which linker is used, so that a new linker links anew.
pub const LINKER_VARIABLE: &str = "FAIRLEAD_BPF_LINKER";

/// The package, and the program in it that is the agent's object.
pub const PACKAGE: &str = "fairlead-ebpf";
/// The program in it that benchmarks compare with.
#[allow(dead_code, reason = "the agent's build script has no use for it")]
pub const BENCH: &str = "fairlead-bench-ebpf";
const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "ebpf";
/// Where Debian keeps the compiler and its libraries.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// A way to compile for BPF that is open on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Road {
    /// This compiler has `core` for BPF.
    Prebuilt { rustc: PathBuf },
    /// This rustup toolchain has the sources of `core`.
    Nightly { toolchain: String },
}

/// What this machine has for building an eBPF object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    /// A compiler with `core` prebuilt for BPF.
    pub prebuilt: Option<PathBuf>,
    /// A rustup nightly with `rust-src`.
    pub nightly: Option<String>,
    pub linker: Option<PathBuf>,
}

/// Why no object can be built here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    NoRoad,
    NoPrebuilt,
    NoNightly,
    NoLinker,
    UnknownRoad(String),
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setup = "run `cargo xtask setup`";
        match self {
            Self::NoRoad => write!(
                f,
                "no compiler for eBPF: neither `core` prebuilt in {DEBIAN_CORE} (Debian's rustc-web and \
                 libstd-rust-web-dev-bpf) nor a rustup nightly with rust-src; {setup}"
            ),
            Self::NoPrebuilt => write!(
                f,
                "{ROAD_VARIABLE} asks for the prebuilt road, but {DEBIAN_RUSTC} with `core` in {DEBIAN_CORE} is \
                 not there (Debian's rustc-web and libstd-rust-web-dev-bpf); unset it or {setup}"
            ),
            Self::NoNightly => write!(
                f,
                "{ROAD_VARIABLE} asks for the nightly road, but no rustup nightly has rust-src \
                 (`rustup toolchain install nightly --component rust-src`); unset it or {setup}"
            ),
            Self::NoLinker => write!(
                f,
                "bpf-linker is neither in PATH nor in cargo's bin folder; {setup}"
            ),
            Self::UnknownRoad(word) => {
                write!(
                    f,
                    "{ROAD_VARIABLE}={word}: no such road, there are `prebuilt` and `nightly`"
                )
            }
        }
    }
}

/// Looks for compilers and the linker. Reads folders only, starts nothing.
pub fn find_tools() -> Tools {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let rustup = env::var_os("RUSTUP_HOME").map_or_else(|| home.join(".rustup"), PathBuf::from);
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    Tools {
        prebuilt: prebuilt_rustc(Path::new(DEBIAN_RUSTC), Path::new(DEBIAN_CORE)),
        nightly: nightly_with_source(&rustup.join("toolchains")),
        linker: env::split_paths(&path)
            .chain([cargo.join("bin")])
            .map(|folder| folder.join("bpf-linker"))
            .find(|file| file.is_file()),
    }
}

/// Takes the road that was asked for, or the first that is open, prebuilt before nightly: its compiler
/// is a fixed version, and nothing has to be compiled twice.
///
/// # Errors
/// Says which piece is missing when no road leads to an object.
pub fn choose(tools: &Tools, forced: Option<&str>) -> Result<(Road, PathBuf), Blocked> {
    let prebuilt = tools.prebuilt.clone().map(|rustc| Road::Prebuilt { rustc });
    let nightly = tools
        .nightly
        .clone()
        .map(|toolchain| Road::Nightly { toolchain });
    let road = match forced {
        None | Some("") => prebuilt.or(nightly).ok_or(Blocked::NoRoad)?,
        Some("prebuilt" | "debian") => prebuilt.ok_or(Blocked::NoPrebuilt)?,
        Some("nightly") => nightly.ok_or(Blocked::NoNightly)?,
        Some(word) => return Err(Blocked::UnknownRoad(word.to_owned())),
    };
    let linker = tools.linker.clone().ok_or(Blocked::NoLinker)?;
    Ok((road, linker))
}

/// Builds the object of the program `bin`, or finds it built, and returns its path below `target`.
///
/// `workspace` is the folder of the workspace's `Cargo.toml`. `target` must not be the target folder of a cargo
/// that is waiting for us: it holds the lock.
///
/// # Errors
/// One message for a person: what is missing, or that the compiler (whose output went to stderr) refused.
pub fn build(
    workspace: &Path,
    target: &Path,
    bin: &str,
    extra_flags: &[&str],
) -> Result<PathBuf, String> {
    let forced = env::var(ROAD_VARIABLE).ok();
    let (road, linker) =
        choose(&find_tools(), forced.as_deref()).map_err(|blocked| blocked.to_string())?;
    let mut command = command(&road, &linker, workspace, target, bin, extra_flags);
    for (name, _) in env::vars_os().filter(|(name, _)| belongs_to_outer_build(name)) {
        command.env_remove(name);
    }
    let status = command
        .status()
        .map_err(|error| format!("starting {command:?}: {error}"))?;
    if !status.success() {
        return Err(format!(
            "the eBPF object did not build ({status}); the command was: {command:?}"
        ));
    }
    Ok(target.join(TARGET).join(PROFILE).join(bin))
}

/// Names the folder for the object's own build below the target folder that `inside` lies in: shared by all
/// profiles, and never locked by the cargo that runs a build script.
pub fn target_folder(workspace: &Path, inside: &Path) -> PathBuf {
    // Cargo marks the top of every target folder with this file.
    let top = inside
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    top.map_or_else(|| workspace.join("target"), Path::to_path_buf)
        .join("ebpf")
}

fn command(
    road: &Road,
    linker: &Path,
    workspace: &Path,
    target: &Path,
    bin: &str,
    extra_flags: &[&str],
) -> Command {
    let mut command = match road {
        Road::Prebuilt { rustc } => {
            let mut cargo =
                Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
            cargo.env("RUSTC", rustc);
            cargo
        }
        Road::Nightly { toolchain } => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", toolchain, "cargo"]);
            rustup
        }
    };
    command
        .arg("build")
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"));
    command.args([
        "--package",
        PACKAGE,
        "--bin",
        bin,
        "--target",
        TARGET,
        "--profile",
        PROFILE,
    ]);
    command.arg("--target-dir").arg(target);
    match road {
        // BPF assembly is unstable. Naming the crates that use it, and no others, keeps build scripts from
        // taking this compiler for a nightly.
        Road::Prebuilt { .. } => {
            command.env("RUSTC_BOOTSTRAP", "aya_ebpf,aya_log_ebpf,fairlead_ebpf")
        }
        Road::Nightly { .. } => command.args(["-Z", "build-std=core"]),
    };
    let flags = [
        // Type information: the loader needs it for maps, people for line numbers in the verifier's log.
        "-Clink-arg=--btf",
        "-Cdebuginfo=2",
        // Without it a read of a packed header becomes byte loads: 194 instructions instead of 123 for one
        // IPv6 forwarder, 139 to 157 ns instead of 105.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    ];
    let mut flags: Vec<OsString> = flags
        .iter()
        .chain(extra_flags)
        .map(OsString::from)
        .collect();
    let mut name_linker = OsString::from("-Clinker=");
    name_linker.push(linker);
    flags.push(name_linker);
    command.env(
        "CARGO_ENCODED_RUSTFLAGS",
        flags.join(&OsString::from("\x1f")),
    );
    command.env(LINKER_VARIABLE, linker);
    command
}

/// Says whether a variable describes the build that we are called from (a build script sees the outer
/// compiler, clippy's wrapper, profile overrides …) and must not leak into ours.
fn belongs_to_outer_build(name: &std::ffi::OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    // How cargo reaches the network and speaks to people is the same for both.
    let shared = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    let outer = [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_",
        "__CARGO",
    ];
    let set_by_us = ["CARGO_ENCODED_RUSTFLAGS", "RUSTC", "RUSTC_BOOTSTRAP"];
    outer.iter().any(|prefix| name.starts_with(prefix))
        && !shared.iter().any(|prefix| name.starts_with(prefix))
        && !set_by_us.contains(&name)
}

fn prebuilt_rustc(rustc: &Path, core: &Path) -> Option<PathBuf> {
    let has_core = fs::read_dir(core).ok()?.flatten().any(|file| {
        let name = file.file_name();
        name.to_str()
            .is_some_and(|name| name.starts_with("libcore-"))
    });
    (has_core && rustc.is_file()).then(|| rustc.to_path_buf())
}

fn nightly_with_source(toolchains: &Path) -> Option<String> {
    let names = fs::read_dir(toolchains)
        .ok()?
        .flatten()
        .filter_map(|folder| folder.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with("nightly"))
        .filter(|name| {
            toolchains
                .join(name)
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .is_file()
        })
        // `nightly-x86_64…` sorts after every dated `nightly-2026-…`: the one that is kept up to date.
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_tools() -> Tools {
        Tools {
            prebuilt: Some(PathBuf::from(DEBIAN_RUSTC)),
            nightly: Some("nightly-x86_64-unknown-linux-gnu".to_owned()),
            linker: Some(PathBuf::from("/bin/bpf-linker")),
        }
    }

    fn nightly() -> Road {
        Road::Nightly {
            toolchain: "nightly-x86_64-unknown-linux-gnu".to_owned(),
        }
    }

    fn prebuilt() -> Road {
        Road::Prebuilt {
            rustc: PathBuf::from(DEBIAN_RUSTC),
        }
    }

    #[test]
    fn the_prebuilt_road_is_taken_first_and_nightly_when_it_is_the_only_one() {
        let tools = all_tools();
        assert_eq!(choose(&tools, None).map(|(road, _)| road), Ok(prebuilt()));
        let only_nightly = Tools {
            prebuilt: None,
            ..tools
        };
        assert_eq!(
            choose(&only_nightly, None).map(|(road, _)| road),
            Ok(nightly())
        );
    }

    #[test]
    fn a_forced_road_is_taken_or_refused_but_never_replaced() {
        let tools = all_tools();
        assert_eq!(
            choose(&tools, Some("nightly")).map(|(road, _)| road),
            Ok(nightly())
        );
        assert_eq!(
            choose(&tools, Some("debian")).map(|(road, _)| road),
            Ok(prebuilt())
        );
        let no_nightly = Tools {
            nightly: None,
            ..tools.clone()
        };
        assert_eq!(
            choose(&no_nightly, Some("nightly")),
            Err(Blocked::NoNightly)
        );
        let no_prebuilt = Tools {
            prebuilt: None,
            ..tools.clone()
        };
        assert_eq!(
            choose(&no_prebuilt, Some("prebuilt")),
            Err(Blocked::NoPrebuilt)
        );
        assert_eq!(
            choose(&tools, Some("gcc")),
            Err(Blocked::UnknownRoad("gcc".to_owned()))
        );
    }

    #[test]
    fn every_refusal_says_what_is_missing_and_what_to_type() {
        let nothing = Tools::default();
        let message = choose(&nothing, None).unwrap_err().to_string();
        for words in ["rustc-web", "rust-src", "cargo xtask setup"] {
            assert!(message.contains(words), "{words:?} is not in {message:?}");
        }
        let no_linker = Tools {
            linker: None,
            ..all_tools()
        };
        let message = choose(&no_linker, None).unwrap_err().to_string();
        assert!(
            message.contains("bpf-linker") && message.contains("cargo xtask setup"),
            "{message}"
        );
        let message = choose(&nothing, Some("nightly")).unwrap_err().to_string();
        assert!(
            message.contains("rustup toolchain install nightly --component rust-src"),
            "{message}"
        );
    }

    fn words(command: &Command) -> Vec<String> {
        let program = command.get_program().to_string_lossy().into_owned();
        [program]
            .into_iter()
            .chain(
                command
                    .get_args()
                    .map(|arg| arg.to_string_lossy().into_owned()),
            )
            .collect()
    }

    fn variable(command: &Command, name: &str) -> Option<String> {
        let found = command.get_envs().find(|(key, _)| *key == name);
        found.and_then(|(_, value)| Some(value?.to_string_lossy().into_owned()))
    }

    #[test]
    fn the_nightly_road_compiles_core_along_and_needs_no_bootstrap() {
        let command = command(
            &nightly(),
            Path::new("/l"),
            Path::new("/w"),
            Path::new("/t"),
            PACKAGE,
            &[],
        );
        let words = words(&command);
        assert_eq!(
            words[..5],
            [
                "rustup",
                "run",
                "nightly-x86_64-unknown-linux-gnu",
                "cargo",
                "build"
            ]
        );
        assert_eq!(words[words.len() - 2..], ["-Z", "build-std=core"]);
        assert_eq!(variable(&command, "RUSTC_BOOTSTRAP"), None);
        assert_eq!(variable(&command, "RUSTC"), None);
    }

    #[test]
    fn the_prebuilt_road_names_its_compiler_and_the_crates_that_use_unstable_features() {
        let command = command(
            &prebuilt(),
            Path::new("/l"),
            Path::new("/w"),
            Path::new("/t"),
            PACKAGE,
            &["-Dwarnings"],
        );
        assert!(!words(&command).contains(&"-Z".to_owned()));
        assert_eq!(variable(&command, "RUSTC").as_deref(), Some(DEBIAN_RUSTC));
        assert_eq!(
            variable(&command, "RUSTC_BOOTSTRAP").as_deref(),
            Some("aya_ebpf,aya_log_ebpf,fairlead_ebpf")
        );
        let flags = variable(&command, "CARGO_ENCODED_RUSTFLAGS").unwrap();
        assert_eq!(
            flags.split('\x1f').collect::<Vec<_>>(),
            [
                "-Clink-arg=--btf",
                "-Cdebuginfo=2",
                "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
                "-Dwarnings",
                "-Clinker=/l"
            ]
        );
    }

    #[test]
    fn the_outer_build_does_not_leak_into_ours_but_the_way_to_the_network_does() {
        let outer = [
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CARGO_PROFILE_X",
        ];
        for name in outer.iter().chain(&[
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "CARGO_MAKEFLAGS",
        ]) {
            assert!(belongs_to_outer_build(name.as_ref()), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_X_INDEX",
            "PATH",
            "RUSTUP_HOME",
            "HOME",
        ] {
            assert!(!belongs_to_outer_build(name.as_ref()), "{name}");
        }
    }
}
