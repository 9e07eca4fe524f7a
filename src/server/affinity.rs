//! Which CPU each shard runs on.
#![forbid(unsafe_code)]

use core_affinity::CoreId;

use super::StartError;
use super::config::ShardCount;
use super::config::units::CpuList;
use crate::limits::SHARDS_MAX;

/// The CPU of each shard, by shard number. Not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// One CPU per shard; `None` where the affinity mask cannot be read: then nothing is pinned.
    pub cpus: Vec<Option<usize>>,
}

impl Plan {
    /// How many shards.
    pub fn shards(&self) -> usize {
        self.cpus.len()
    }

    /// The CPUs in use, for the banner.
    pub fn describe_cpus(&self) -> String {
        let mut cpus: Vec<usize> = self.cpus.iter().copied().flatten().collect();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() { "not pinned".to_owned() } else { CpuList(cpus).to_string() }
    }
}

/// Plans with what this process may use: its affinity mask, and the CPU quota of its cgroup (which
/// the standard library's count respects, in both versions of cgroups).
///
/// # Errors
/// When `wanted` names a CPU that is not in the mask.
pub fn plan(count: ShardCount, wanted: Option<&CpuList>) -> Result<Plan, StartError> {
    let mask: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
    plan_with(count, wanted, &mask, parallelism).map_err(StartError::new)
}

/// [`plan`] on a machine that has these CPUs in its `mask` and may use `parallelism` of them at a
/// time.
fn plan_with(
    count: ShardCount,
    wanted: Option<&CpuList>,
    mask: &[usize],
    parallelism: usize,
) -> Result<Plan, String> {
    let usable = match wanted {
        Some(CpuList(wanted)) => {
            if let Some(cpu) = wanted.iter().find(|cpu| !mask.contains(cpu)) {
                return Err(format!(
                    "CPU {cpu} of --cpus is not usable; this process may run on {}",
                    CpuList(mask.to_vec())
                ));
            }
            wanted
        }
        None => mask,
    };
    let shards = match count {
        ShardCount::Exactly(shards) => shards,
        ShardCount::Auto if usable.is_empty() => parallelism.min(SHARDS_MAX),
        ShardCount::Auto => usable.len().min(parallelism).clamp(1, SHARDS_MAX),
    };
    let mut cpus: Vec<Option<usize>> =
        usable.iter().copied().map(Some).cycle().take(shards).collect();
    cpus.resize(shards, None);
    Ok(Plan { cpus })
}

/// Pins the calling thread. False when the kernel refuses.
pub fn pin(cpu: usize) -> bool {
    core_affinity::set_for_current(CoreId { id: cpu })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ShardCount::{Auto, Exactly};

    fn cpus(
        count: ShardCount,
        wanted: Option<&str>,
        mask: &[usize],
        parallelism: usize,
    ) -> Vec<usize> {
        let wanted = wanted.map(|list| list.parse().expect("a list"));
        let plan = plan_with(count, wanted.as_ref(), mask, parallelism).expect("a plan");
        plan.cpus.into_iter().map(|cpu| cpu.expect("pinned")).collect()
    }

    #[test]
    fn auto_is_one_shard_per_usable_cpu() {
        assert_eq!(cpus(Auto, None, &[0, 1, 4, 5], 4), [0, 1, 4, 5]);
        assert_eq!(cpus(Auto, Some("1,4"), &[0, 1, 4, 5], 4), [1, 4]);
    }

    #[test]
    fn auto_respects_a_quota_and_the_maximum() {
        assert_eq!(cpus(Auto, None, &[0, 1, 2, 3], 2), [0, 1]);
        assert_eq!(cpus(Auto, None, &[3], 0), [3]);
        let many: Vec<usize> = (0..128).collect();
        assert_eq!(cpus(Auto, None, &many, 128).len(), SHARDS_MAX);
    }

    #[test]
    fn a_number_is_taken_as_it_is() {
        assert_eq!(cpus(Exactly(3), None, &[0, 7], 1), [0, 7, 0]);
        assert_eq!(cpus(Exactly(1), Some("7"), &[0, 7], 2), [7]);
    }

    #[test]
    fn without_a_mask_nothing_is_pinned() {
        let plan = plan_with(Auto, None, &[], 2).expect("a plan");
        assert_eq!(plan.cpus, [None, None]);
        assert_eq!(plan.describe_cpus(), "not pinned");
    }

    #[test]
    fn cpus_outside_the_mask_are_refused() {
        let wanted = "0,5".parse().expect("a list");
        let error = plan_with(Auto, Some(&wanted), &[0, 1, 2], 3).expect_err("refused");
        assert_eq!(error, "CPU 5 of --cpus is not usable; this process may run on 0-2");
    }
}
