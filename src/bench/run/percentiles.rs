//! `.hgrm`: the percentiles of a histogram in the text that HdrHistogram's
//! `outputPercentileDistribution` writes, and that its plotters read.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// Reporting steps in each half of the distance to 100 %, as is usual.
const TICKS_PER_HALF: u32 = 5;

/// The text, in nanoseconds.
pub fn to_hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64;
        let quantile = step.quantile_iterated_to();
        if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            let _ = writeln!(text, "{value:>12.3} {quantile:>14.12} {total:>10} {inverse:>14.2}");
        } else {
            let _ = writeln!(text, "{value:>12.3} {quantile:>14.12} {total:>10}");
        }
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n\
         #[Max     = {:>12.3}, Total count    = {:>12}]\n\
         #[Buckets = {:>12}, SubBuckets     = {:>12}]",
        histogram.mean(),
        histogram.stdev(),
        histogram.max() as f64,
        histogram.len(),
        histogram.buckets(),
        // Of the precision that everything here is recorded with.
        2u32.pow((2.0 * 10f64.powi(histogram.sigfig().into())).log2().ceil() as u32),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::record::histogram;
    use super::*;

    #[test]
    fn is_the_classic_text() {
        let mut values = histogram();
        for value in 1..=10_000u64 {
            values.record(value).unwrap();
        }
        let text = to_hgrm(&values);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "       1.000 0.000000000000          1           1.00");
        assert_eq!(lines[7], "    5003.000 0.500000000000       5003           2.00");
        let last = lines.iter().position(|line| line.starts_with('#')).unwrap();
        assert_eq!(lines[last - 1], "   10007.000 1.000000000000      10000");
        assert_eq!(lines[last], "#[Mean    =     5000.898, StdDeviation   =     2886.893]");
        assert_eq!(lines[last + 1], "#[Max     =    10007.000, Total count    =        10000]");
        assert_eq!(lines[last + 2], "#[Buckets =           32, SubBuckets     =         2048]");
    }

    #[test]
    fn nothing_has_no_percentiles() {
        let text = to_hgrm(&histogram());
        assert!(text.contains("Total count    =            0"), "{text}");
    }
}
