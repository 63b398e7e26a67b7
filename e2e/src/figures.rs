//! Percentiles of samples, for the benches.

/// The 50th and the 99th percentile (nearest rank below), as "p50 / p99".
pub fn p50_p99(samples: &mut [u64]) -> String {
    samples.sort_unstable();
    let at = |percent: usize| samples.get((samples.len().saturating_sub(1)) * percent / 100);
    match (at(50), at(99)) {
        (Some(p50), Some(p99)) => format!("{p50} / {p99}"),
        _ => "–".into(),
    }
}

/// The 50th and the 95th percentile and the greatest, as "p50 / p95 / max".
pub fn p50_p95_max(samples: &mut [u64]) -> String {
    samples.sort_unstable();
    let at = |percent: usize| samples.get((samples.len().saturating_sub(1)) * percent / 100);
    match (at(50), at(95), samples.last()) {
        (Some(p50), Some(p95), Some(max)) => format!("{p50} / {p95} / {max}"),
        _ => "–".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(p50_p99(&mut samples), "50 / 99");
        assert_eq!(p50_p95_max(&mut samples), "50 / 95 / 100");
        assert_eq!(p50_p99(&mut []), "–");
        assert_eq!(p50_p95_max(&mut []), "–");
    }
}
