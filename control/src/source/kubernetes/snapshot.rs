//! The objects on disk, for an agent that starts while the API server is away.
//!
//! One JSON file, replaced by renaming, readable by its owner alone: passwords of peers are in it. Objects are as
//! the API server gave them, without what changes all the time.
//!
//! Not here: when it is written and what is made of it.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::source::resource::{self, Resources};

/// A file of another version is not read.
const VERSION: u32 = 1;

/// What an earlier agent knew.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    version: u32,
    /// When it was written.
    pub taken_at: Timestamp,
    /// The objects.
    pub objects: Vec<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    version: u32,
    taken_at: Timestamp,
    objects: Vec<&'a RawValue>,
}

/// Where it is, in the state folder.
pub fn file(state: &Path) -> PathBuf {
    state.join("kubernetes.json")
}

/// Writes the objects, each as JSON.
///
/// # Errors
/// The file cannot be written; what was there before is still there.
pub fn store(file: &Path, objects: &[Arc<RawValue>], taken_at: Timestamp) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let draft = file.with_extension("new");
    let mut open = File::options();
    open.create(true).truncate(true).write(true).mode(0o600);
    let mut writer = BufWriter::new(open.open(&draft)?);
    let written = Written {
        version: VERSION,
        taken_at,
        objects: objects.iter().map(Arc::as_ref).collect(),
    };
    serde_json::to_writer(&mut writer, &written)?;
    writer.flush()?;
    writer.get_ref().sync_all()?;
    fs::rename(draft, file)
}

/// Reads what an earlier agent wrote, if one did.
///
/// # Errors
/// Why the file is of no use.
pub fn load(file: &Path) -> Result<Option<Snapshot>, String> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let snapshot: Snapshot = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if snapshot.version != VERSION {
        return Err(format!(
            "it has version {}, and {VERSION} is read",
            snapshot.version
        ));
    }
    Ok(Some(snapshot))
}

/// The objects of a snapshot, for whom no agent runs.
///
/// # Errors
/// There is none, or it is of no use.
pub fn read(file: &Path) -> Result<Resources, String> {
    let snapshot = load(file)?.ok_or("there is no such file")?;
    let origin = file.display().to_string();
    Ok(resource::join(
        snapshot
            .objects
            .into_iter()
            .map(|object| resource::read_value(&origin, object)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Arc<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap().into()
    }

    #[test]
    fn what_is_written_is_read_again_and_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/kubernetes.json");
        assert!(load(&file).unwrap().is_none());
        let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}"#;

        store(&file, &[raw(service)], Timestamp::UNIX_EPOCH).unwrap();

        let read = load(&file).unwrap().unwrap();
        assert_eq!(read.taken_at, Timestamp::UNIX_EPOCH);
        assert_eq!(read.objects[0]["metadata"]["name"], "a");
        assert_eq!(super::read(&file).unwrap().services.len(), 1);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn half_a_file_and_another_version_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubernetes.json");
        fs::write(&file, "{\"version\": 1, \"taken").unwrap();
        assert!(load(&file).is_err());
        fs::write(
            &file,
            r#"{"version": 2, "takenAt": "2026-01-01T00:00:00Z", "objects": []}"#,
        )
        .unwrap();
        assert!(load(&file).unwrap_err().contains("version 2"));
    }
}
