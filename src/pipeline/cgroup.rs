//! What the control group of this process still allows it: its own group and every one above, of version 1 or 2.
//!
//! A batch job or a container is killed when its group is full, however much the machine has left. The group's
//! files are found as `/proc/self/cgroup` and `/proc/self/mountinfo` tell: a container may see its own group alone,
//! under a path that is another outside.

use std::path::{Path, PathBuf};

use crate::storage::regular_file;

/// Files of one version.
struct Version {
    /// Limits; the least counts.
    limits: &'static [&'static str],
    usage: &'static str,
    /// The key in `memory.stat` of what the system takes back before it kills: pages of files that were not used
    /// lately.
    reclaimable: &'static str,
}

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

const V2: Version =
    Version { limits: &["memory.max", "memory.high"], usage: "memory.current", reclaimable: "inactive_file" };

/// Bytes that this process's group, and every group above it, leaves it; `None` without a limit.
pub(crate) fn available() -> Option<u64> {
    available_below(Path::new("/"))
}

/// The same in the file system whose root is `root`.
fn available_below(root: &Path) -> Option<u64> {
    let read = |path: &str| regular_file::read_text(&root.join(path)).ok();
    let (groups, mounts) = (read("proc/self/cgroup")?, read("proc/self/mountinfo")?);
    [&V1, &V2].into_iter().filter_map(|version| version.available(root, &groups, &mounts)).min()
}

impl Version {
    fn is_v2(&self) -> bool {
        self.usage == V2.usage
    }

    fn available(&self, root: &Path, groups: &str, mounts: &str) -> Option<u64> {
        let group = self.group(groups)?;
        let (mount_root, mount) = mounts.lines().find_map(|line| self.mount(line))?;
        let below = Path::new(group).strip_prefix(&mount_root).unwrap_or(Path::new(""));
        let mount = root.join(mount.strip_prefix("/").unwrap_or(&mount));
        let own = mount.join(below);
        own.ancestors().take_while(|at| at.starts_with(&mount)).filter_map(|at| self.left(at)).min()
    }

    /// This process's group, of the lines `number:controllers:path`.
    fn group<'a>(&self, groups: &'a str) -> Option<&'a str> {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = if self.is_v2() {
                line.starts_with("0::")
            } else {
                controllers.split(',').any(|controller| controller == "memory")
            };
            is_it.then_some(path)
        })
    }

    /// Which group is mounted where, if the line of `mountinfo` is about this version's groups.
    fn mount(&self, line: &str) -> Option<(PathBuf, PathBuf)> {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' ').skip(3), kind.split(' '));
        let is_it = match kind.next()? {
            "cgroup2" => self.is_v2(),
            "cgroup" => !self.is_v2() && kind.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        let unescaped = |text: &str| PathBuf::from(text.replace("\\040", " "));
        is_it.then_some((unescaped(place.next()?), unescaped(place.next()?)))
    }

    /// What one group leaves; `None` where it has no limit.
    fn left(&self, group: &Path) -> Option<u64> {
        let number = |name: &str| regular_file::read_text(&group.join(name)).ok()?.trim().parse::<u64>().ok();
        // Version 1 writes a huge number for no limit, version 2 the word `max`.
        let limit =
            self.limits.iter().filter_map(|name| number(name)).min().filter(|limit| *limit < 1 << 60)?;
        let stat = regular_file::read_text(&group.join("memory.stat")).unwrap_or_default();
        let reclaimable = stat.lines().find_map(|line| {
            let (key, value) = line.split_once(' ')?;
            (key == self.reclaimable).then(|| value.trim().parse().ok())?
        });
        let used = number(self.usage).unwrap_or(0).saturating_sub(reclaimable.unwrap_or(0));
        Some(limit.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A file system in which the process's groups are as `files` say.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MOUNT2: &str = "25 30 0:23 / /sys rw - sysfs sysfs rw\n31 25 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_least_of_all_nested_groups_counts() {
        let root = system(&[
            ("proc/self/cgroup", "0::/slurm/job_7/step_0\n"),
            ("proc/self/mountinfo", MOUNT2),
            ("sys/fs/cgroup/slurm/memory.max", "max\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.max", "500000000\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.current", "100000000\n"),
            ("sys/fs/cgroup/slurm/job_7/memory.stat", "anon 30\ninactive_file 60000000\nactive_file 9\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "700000000\n"),
            ("sys/fs/cgroup/slurm/job_7/step_0/memory.current", "1000\n"),
        ]);
        assert_eq!(available_below(root.path()), Some(460_000_000));
        fs::write(root.path().join("sys/fs/cgroup/slurm/job_7/step_0/memory.high"), "300000000\n").unwrap();
        assert_eq!(available_below(root.path()), Some(299_999_000));
    }

    #[test]
    fn version_1_in_a_container_that_sees_its_own_group_only() {
        let root = system(&[
            (
                "proc/self/cgroup",
                "12:cpu,cpuacct:/docker/ab\n9:memory:/docker/ab\n1:name=systemd:/docker/ab\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                "40 36 0:35 /docker/ab /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n\
                 42 36 0:37 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "36870912\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 6870912\n"),
        ]);
        assert_eq!(available_below(root.path()), Some(506_870_912));
        fs::write(root.path().join("sys/fs/cgroup/memory/memory.limit_in_bytes"), "9223372036854771712\n")
            .unwrap();
        assert_eq!(available_below(root.path()), None);
    }

    #[test]
    fn no_group_is_no_limit_and_a_full_one_leaves_nothing() {
        assert_eq!(available_below(system(&[]).path()), None);
        let root = system(&[
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", MOUNT2),
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "2000\n"),
        ]);
        assert_eq!(available_below(root.path()), Some(0));
    }
}
