//! A watched folder of Kubernetes manifests, like static pods: a lab host and a cluster node use the
//! same documents.
//!
//! ```text
//!   inotify ──(bursts coalesced)──> list files ──> Folder::update ──> Resources
//! ```
//! [`Folder`] is the pure half: the texts of all files in, all objects out. A file or an object that
//! can no longer be read keeps the version that could. [`Manifests`] is the edge that watches.
//!
//! # Why
//! The folder is watched, not its files: editors replace files, and a ConfigMap volume swaps the
//! symlink `..data`. It is also listed anew twice a minute, so that an event which never comes
//! (a symlink that leads out of the folder, a network file system) costs half a minute, not an object.
//!
//! Not here: what the objects mean (`desired::merge`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::resource::{self, Reading, Resources};
use crate::object::Condition;

/// A change is acted on when nothing else has changed for this long.
const QUIET: Duration = Duration::from_millis(50);
/// A burst of changes is acted on after this long at the latest.
const BURST: Duration = Duration::from_millis(500);
/// How often the folder is listed without an event.
const RELIST: Duration = Duration::from_secs(30);
/// How often a folder that is not there is looked for.
const MISSING: Duration = Duration::from_millis(500);
/// A file larger than this is no manifest.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What a listing of the folder found: file names and their texts, or why a file has none.
pub type Listing = BTreeMap<String, Result<String, String>>;

/// The objects of all files, as far as they could ever be read.
#[derive(Debug, Default)]
pub struct Folder {
    /// The latest good version of each file.
    files: BTreeMap<String, Reading>,
}

impl Folder {
    /// Takes the texts of all files and gives all objects.
    pub fn update(&mut self, listing: Listing) -> Resources {
        let mut before = std::mem::take(&mut self.files);
        let mut conditions = Vec::new();
        for (file, text) in listing {
            let before = before.remove(&file);
            let reading = text
                .map_err(|why| Condition {
                    object: file.clone(),
                    origin: file.clone(),
                    reason: "Unreadable".to_owned(),
                    message: why,
                })
                .and_then(|text| resource::read(&file, &text));
            let reading = match reading {
                Ok(reading) => keep_rejected(reading, before),
                Err(mut condition) => {
                    let mut kept = before.unwrap_or_default();
                    if !kept.objects.is_empty() {
                        condition
                            .message
                            .push_str("; the objects read from it before stay in force");
                    }
                    conditions.push(condition);
                    // What was wrong with the earlier version is not what is wrong now.
                    kept.conditions.clear();
                    kept
                }
            };
            self.files.insert(file, reading);
        }
        self.resources(conditions)
    }

    /// All objects, for a folder that cannot be listed: they stay in force.
    pub fn unlisted(&self, folder: &Path, why: &str) -> Resources {
        let mut message = format!("{why}; waiting for it");
        if !self.files.is_empty() {
            message.push_str(", the objects read from it before stay in force");
        }
        self.resources(vec![Condition {
            object: folder.display().to_string(),
            origin: String::new(),
            reason: "FolderMissing".to_owned(),
            message,
        }])
    }

    fn resources(&self, mut conditions: Vec<Condition>) -> Resources {
        let mut resources = resource::join(self.files.values().cloned());
        conditions.append(&mut resources.conditions);
        resources.conditions = conditions;
        resources
    }
}

/// Puts the earlier version of objects that can no longer be read in their place.
fn keep_rejected(mut reading: Reading, before: Option<Reading>) -> Reading {
    let kept: Vec<_> = before
        .into_iter()
        .flat_map(|before| before.objects)
        .filter(|earlier| {
            let title = earlier.object.title();
            reading.rejected.contains(&title)
                && !reading
                    .objects
                    .iter()
                    .any(|now| now.object.title() == title)
        })
        .collect();
    for earlier in &kept {
        let title = earlier.object.title();
        for condition in &mut reading.conditions {
            if condition.object == title && condition.reason == "Unreadable" {
                condition
                    .message
                    .push_str("; the version read before stays in force");
            }
        }
    }
    reading.objects.extend(kept);
    reading
}

/// Lists a folder: `*.yaml`, `*.yml` and `*.json`, without subfolders and hidden files. Files are named
/// by their path, so that a condition leads to them.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(folder: &Path) -> std::io::Result<Listing> {
    let mut listing = Listing::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_manifest = path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension == *known)
        });
        if name.starts_with('.') || !is_manifest {
            continue;
        }
        let text = match std::fs::metadata(&path) {
            // Gone since it was listed: the event of that follows.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Ok(metadata) if metadata.is_dir() => continue,
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => Err(format!(
                "the file is larger than {} MiB: split it",
                MAX_FILE_BYTES >> 20
            )),
            Ok(_) => std::fs::read_to_string(&path)
                .map_err(|error| format!("the file cannot be read: {error}")),
            Err(error) => Err(format!("the file cannot be read: {error}")),
        };
        listing.insert(path.display().to_string(), text);
    }
    Ok(listing)
}

/// A folder that is watched.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
    state: Folder,
    latest: Option<Resources>,
    changes: mpsc::Receiver<()>,
    watcher: RecommendedWatcher,
    is_watched: bool,
}

impl Manifests {
    /// Prepares to watch a folder, which need not be there yet.
    ///
    /// # Errors
    /// The kernel gives no inotify instance.
    pub fn open(folder: PathBuf) -> notify::Result<Self> {
        let (changed, changes) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            // A full channel holds a change that nobody has looked at: one is enough.
            let _ = changed.try_send(());
        })?;
        Ok(Self {
            folder,
            state: Folder::default(),
            latest: None,
            changes,
            watcher,
            is_watched: false,
        })
    }

    /// All objects: at once the first time, then whenever they have changed. Cancel-safe: what it has
    /// not returned it finds again.
    pub async fn next(&mut self) -> Resources {
        loop {
            let resources = self.look();
            if self.latest.as_ref() != Some(&resources) {
                self.latest = Some(resources.clone());
                return resources;
            }
            self.change().await;
        }
    }

    fn look(&mut self) -> Resources {
        if !self.is_watched {
            // Watched before it is listed: a change in between is an event.
            self.is_watched = self
                .watcher
                .watch(&self.folder, RecursiveMode::NonRecursive)
                .is_ok();
        }
        match list(&self.folder) {
            Ok(listing) => self.state.update(listing),
            Err(error) => {
                if self.is_watched {
                    // The watch was on a folder that is no more.
                    let _ = self.watcher.unwatch(&self.folder);
                    self.is_watched = false;
                }
                self.state.unlisted(
                    &self.folder,
                    &format!("the folder cannot be listed: {error}"),
                )
            }
        }
    }

    /// Waits for a change and for its burst to end.
    async fn change(&mut self) {
        let patience = if self.is_watched { RELIST } else { MISSING };
        if timeout(patience, self.changes.recv()).await.is_err() {
            return;
        }
        let quiet = async {
            while timeout(QUIET, self.changes.recv())
                .await
                .is_ok_and(|c| c.is_some())
            {}
        };
        tokio::select! {
            () = quiet => {}
            () = sleep(BURST) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn service(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    }

    fn listing(files: &[(&str, &str)]) -> Listing {
        files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned())))
            .collect()
    }

    fn names(resources: &Resources) -> Vec<String> {
        resources.services.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_that_broke_keeps_its_objects_in_force() {
        let mut folder = Folder::default();
        let good = service("web");
        folder.update(listing(&[("a.yaml", &good)]));

        let resources = folder.update(listing(&[
            ("a.yaml", "kind: [\n"),
            ("b.yaml", &service("b")),
        ]));

        assert_eq!(names(&resources), ["default/b", "default/web"]);
        let [condition] = &resources.conditions[..] else {
            panic!("{:?}", resources.conditions);
        };
        assert_eq!(condition.reason, "Unparsable");
        assert!(condition.origin.starts_with("a.yaml:"), "{condition:?}");
        assert!(
            condition
                .message
                .ends_with("; the objects read from it before stay in force"),
            "{condition:?}"
        );
    }

    #[test]
    fn a_file_that_never_was_good_has_no_objects_and_says_only_why() {
        let resources = Folder::default().update(listing(&[("a.yaml", "kind: [\n")]));

        assert!(names(&resources).is_empty());
        assert!(!resources.conditions[0].message.contains("in force"));
    }

    #[test]
    fn an_object_that_broke_keeps_its_version_and_its_neighbours_change() {
        let mut folder = Folder::default();
        folder.update(listing(&[(
            "a.yaml",
            &format!("{}---\n{}", service("web"), service("old")),
        )]));

        let broken = service("web").replace("port: 80", "port: many");
        let resources = folder.update(listing(&[(
            "a.yaml",
            &format!("{broken}---\n{}", service("new")),
        )]));

        assert_eq!(names(&resources), ["default/new", "default/web"]);
        let [condition] = &resources.conditions[..] else {
            panic!("{:?}", resources.conditions);
        };
        assert_eq!(condition.object, "Service default/web");
        assert_eq!(condition.origin, "a.yaml:4");
        assert!(
            condition
                .message
                .starts_with("spec.ports[0].port: invalid type")
                && condition
                    .message
                    .ends_with("; the version read before stays in force"),
            "{condition:?}"
        );

        // It stays so while it stays broken, and ends when the object is removed.
        let again = folder.update(listing(&[("a.yaml", &broken)]));
        assert_eq!(names(&again), ["default/web"]);
        let removed = folder.update(listing(&[("a.yaml", "")]));
        assert!(names(&removed).is_empty());
    }

    #[test]
    fn a_file_that_is_removed_takes_its_objects_away() {
        let mut folder = Folder::default();
        folder.update(listing(&[("a.yaml", &service("web"))]));

        assert!(names(&folder.update(Listing::new())).is_empty());
    }

    #[test]
    fn an_unreadable_file_is_a_condition() {
        let files = Listing::from([(
            "a.yaml".to_owned(),
            Err("the file cannot be read: denied".to_owned()),
        )]);

        let resources = Folder::default().update(files);

        assert_eq!(resources.conditions[0].reason, "Unreadable");
        assert_eq!(
            resources.conditions[0].message,
            "the file cannot be read: denied"
        );
    }

    #[test]
    fn only_manifests_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yml", "c.json", ".hidden.yaml", "notes.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join("d.yaml")).unwrap();
        fs::write(dir.path().join("e.yaml"), [0xff, 0xfe]).unwrap();

        let listing = list(dir.path()).unwrap();

        let names: Vec<_> = listing
            .keys()
            .map(|path| path.rsplit('/').next().unwrap_or_default())
            .collect();
        assert_eq!(names, ["a.yaml", "b.yml", "c.json", "e.yaml"]);
        let broken = listing.values().last().unwrap().as_ref().unwrap_err();
        assert!(broken.starts_with("the file cannot be read: "), "{broken}");
    }

    /// Everything but the watch is tested without waiting; these wait for the kernel's events.
    async fn soon(manifests: &mut Manifests) -> Resources {
        timeout(Duration::from_secs(10), manifests.next())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_folder_that_is_missing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("manifests");
        let mut manifests = Manifests::open(folder.clone()).unwrap();

        let resources = soon(&mut manifests).await;
        assert_eq!(resources.conditions[0].reason, "FolderMissing");
        assert!(
            resources.conditions[0]
                .message
                .ends_with("; waiting for it"),
            "{:?}",
            resources.conditions
        );

        let prepared = dir.path().join("prepared");
        fs::create_dir(&prepared).unwrap();
        fs::write(prepared.join("a.yaml"), service("web")).unwrap();
        fs::rename(&prepared, &folder).unwrap();
        assert_eq!(names(&soon(&mut manifests).await), ["default/web"]);

        fs::rename(&folder, &prepared).unwrap();
        fs::write(prepared.join("b.yaml"), "").unwrap();
        let gone = soon(&mut manifests).await;
        assert_eq!(names(&gone), ["default/web"]);
        assert!(
            gone.conditions[0]
                .message
                .ends_with("the objects read from it before stay in force")
        );
    }

    #[tokio::test]
    async fn a_config_map_that_is_swapped_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("..1")).unwrap();
        fs::write(path("..1/a.yaml"), service("one")).unwrap();
        std::os::unix::fs::symlink("..1", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", path("a.yaml")).unwrap();
        let mut manifests = Manifests::open(dir.path().to_owned()).unwrap();
        assert_eq!(names(&soon(&mut manifests).await), ["default/one"]);

        fs::create_dir(path("..2")).unwrap();
        fs::write(path("..2/a.yaml"), service("two")).unwrap();
        std::os::unix::fs::symlink("..2", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();

        assert_eq!(names(&soon(&mut manifests).await), ["default/two"]);
    }

    #[tokio::test]
    async fn a_write_that_changes_no_object_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, service("web")).unwrap();
        let mut manifests = Manifests::open(dir.path().to_owned()).unwrap();
        soon(&mut manifests).await;

        fs::write(&file, format!("{}# a comment\n", service("web"))).unwrap();

        let told = timeout(Duration::from_secs(1), manifests.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
}
