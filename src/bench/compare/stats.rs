//! Medians, and how sure one can be of their ratio.
//!
//! The interval is a percentile bootstrap of the ratio of two medians: both sides are drawn from
//! again, with replacement, and the middle 95 % of the ratios that this gives are the interval. It
//! assumes nothing about how runs are distributed but that they do not depend on each other. With
//! three runs a side it is wrong about one time in eight, with five about one in twenty-five.
//!
//! It is seeded: the same runs always give the same interval.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::limits::{COMPARE_RESAMPLES, COMPARE_VERDICT_RUNS_MIN};

/// Part of the ratios that is outside of the interval, at each end.
const TAIL: f64 = 0.025;
/// Any number does.
const SEED: u64 = 0x6e6f_6374_756c_6521;

/// The middle of `values`, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    median_in_place(&mut sorted)
}

fn median_in_place(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let len = values.len();
    let (low, high) = (values.get(len.checked_sub(1)? / 2)?, values.get(len / 2)?);
    Some((low + high) / 2.0)
}

/// From the lowest to the highest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Interval {
    /// Whether `value` is in it, both ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// Where the ratio of the median of `other` to that of `base` lies, at 95 %. `None` when there are
/// fewer than [`COMPARE_VERDICT_RUNS_MIN`] values on a side: then the spread is unknown.
pub fn ratio_interval(base: &[f64], other: &[f64]) -> Option<Interval> {
    if base.len().min(other.len()) < COMPARE_VERDICT_RUNS_MIN {
        return None;
    }
    let mut random = Random(SEED);
    let mut ratios = Vec::with_capacity(COMPARE_RESAMPLES);
    let mut again = Vec::with_capacity(base.len().max(other.len()));
    for _ in 0..COMPARE_RESAMPLES {
        let below = random.median_of_resample(base, &mut again)?;
        let above = random.median_of_resample(other, &mut again)?;
        let ratio = above / below;
        if ratio.is_finite() {
            ratios.push(ratio);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let last = ratios.len().checked_sub(1)?;
    let at = |part: f64| ratios[((last as f64 * part).round() as usize).min(last)];
    Some(Interval { low: at(TAIL), high: at(1.0 - TAIL) })
}

/// `SplitMix64`, by Steele, Lea and Flood.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; the bias of so few values does not matter.
    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    fn median_of_resample(&mut self, values: &[f64], again: &mut Vec<f64>) -> Option<f64> {
        again.clear();
        again.extend((0..values.len()).map(|_| values[self.below(values.len())]));
        median_in_place(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn too_few_runs_have_no_interval() {
        assert_eq!(ratio_interval(&[1.0, 2.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(ratio_interval(&[1.0, 2.0, 3.0], &[1.0]), None);
    }

    #[test]
    fn a_clear_difference_is_seen_and_noise_is_not() {
        let base = [1.00, 1.04, 0.97, 1.02, 0.99];
        let half: Vec<f64> = base.iter().map(|v| v * 0.5).collect();
        let interval = ratio_interval(&base, &half).unwrap();
        assert!(interval.contains(0.5) && interval.high < 0.6 && interval.low > 0.4);
        let same = ratio_interval(&base, &[1.01, 0.98, 1.03, 0.96, 1.00]).unwrap();
        assert!(same.contains(1.0), "{same:?}");
        assert_eq!(ratio_interval(&base, &half), Some(interval), "it is seeded");
    }

    /// The interval has to mean what it says: where there is no difference it finds one in few of
    /// many trials, and where there is one it finds it in most.
    #[test]
    fn it_is_wrong_as_rarely_as_it_says() {
        let mut random = Random(7);
        let mut draw = |scale: f64| -> Vec<f64> {
            // About normal: the sum of twelve.
            let mut one = || -> f64 {
                (0..12).map(|_| random.next() as f64 / u64::MAX as f64).sum::<f64>() - 6.0
            };
            (0..5).map(|_| scale * (1.0 + 0.05 * one())).collect()
        };
        let mut called = |scale: f64| {
            let trials = (0..60).map(|_| ratio_interval(&draw(1.0), &draw(scale)));
            trials.filter(|interval| !interval.unwrap().contains(1.0)).count()
        };
        assert!(called(1.0) <= 8, "no difference");
        assert!(called(1.3) >= 55, "a difference of 30 % in a noise of 5 %");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_interval_scales_and_stays_within_what_was_seen(
            base in prop::collection::vec(0.1f64..10.0, 3..8),
            other in prop::collection::vec(0.1f64..10.0, 3..8),
        ) {
            let min = |v: &[f64]| v.iter().copied().fold(f64::INFINITY, f64::min);
            let max = |v: &[f64]| v.iter().copied().fold(0.0, f64::max);
            let interval = ratio_interval(&base, &other).unwrap();
            prop_assert!(interval.low <= interval.high);
            prop_assert!(interval.low >= min(&other) / max(&base) * 0.999);
            prop_assert!(interval.high <= max(&other) / min(&base) * 1.001);
            let doubled: Vec<f64> = other.iter().map(|v| v * 2.0).collect();
            let twice = ratio_interval(&base, &doubled).unwrap();
            prop_assert!((twice.low - 2.0 * interval.low).abs() < 1e-9);
            prop_assert!((twice.high - 2.0 * interval.high).abs() < 1e-9);
        }
    }
}
