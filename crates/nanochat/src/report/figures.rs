//! Numbers as people read them. What was not measured says so.

/// What stands where a figure is missing.
pub const NOT_MEASURED: &str = "not measured";

/// The figure as text, or [`NOT_MEASURED`].
pub fn known(x: Option<f64>, text: impl Fn(f64) -> String) -> String {
    x.filter(|x| x.is_finite()).map_or_else(|| NOT_MEASURED.into(), text)
}

/// `1234567.8` is `1,234,568`.
pub fn commas(x: f64) -> String {
    let digits = crate::figures::thousands(x.abs().round() as u64);
    if x < 0.0 && digits != "0" { format!("-{digits}") } else { digits }
}

/// Three digits and a letter: `12.3k`, `1.25M`, `3.1G`; below a thousand no letter.
pub fn short(x: f64) -> String {
    let (scaled, letter) = match x.abs() {
        a if a >= 999.5e9 => (x / 1e12, "T"),
        a if a >= 999.5e6 => (x / 1e9, "G"),
        a if a >= 999.5e3 => (x / 1e6, "M"),
        a if a >= 999.5 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    let places = match scaled.abs() {
        a if a >= 99.95 => 0,
        a if a >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{scaled:.places$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{letter}")
}

/// `0.9333` is `93.3%`, `1.0` is `100%`.
pub fn percent(share: f64) -> String {
    let text = format!("{:.1}", 100.0 * share);
    format!("{}%", text.strip_suffix(".0").unwrap_or(&text))
}

/// `0.452` is `45.2 %`, `1.0` is `100 %`: beside words.
pub fn share(share: f64) -> String {
    percent(share).replace('%', " %")
}

/// Four decimals: losses and bits per byte.
pub fn four(x: f64) -> String {
    format!("{x:.4}")
}

/// `135 ms`, `4.2 s`, `42 s`, `6 min 40 s`, `3 h 05 min`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 0.9995 => format!("{} ms", short(1e3 * s)),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 3599.5 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `0h 17m`: the shape of the line that ends a pipeline.
pub fn wall(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    format!("{}h {}m", minutes / 60, minutes % 60)
}

/// `512 MiB`, `1.5 GiB`.
pub fn bytes(n: f64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    if n < 1024.0 * MIB {
        format!("{:.0} MiB", n / MIB)
    } else {
        format!("{:.1} GiB", n / (1024.0 * MIB))
    }
}

/// Seconds since 1970 as `2026-11-22 14:03 UTC`.
pub fn date(unix: f64) -> String {
    let seconds = unix.clamp(0.0, 4e11) as u64;
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days to a civil date, counted in 400-year eras that begin on 1 March of year 0.
    // Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = era * 400 + yoe + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

/// At most `n` characters; a cut is marked.
pub fn clip(text: &str, n: usize) -> String {
    match text.char_indices().nth(n) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(commas(0.0), "0");
        assert_eq!(commas(999.6), "1,000");
        assert_eq!(commas(1_234_567.8), "1,234,568");
        assert_eq!(commas(-1234.0), "-1,234");
        assert_eq!(short(12_345.0), "12.3k");
        assert_eq!(short(999_900.0), "1M");
        assert_eq!(short(250.0), "250");
        assert_eq!(short(0.5), "0.5");
        assert_eq!(percent(0.9333), "93.3%");
        assert_eq!(percent(1.0), "100%");
        assert_eq!(bytes(1_610_612_736.0), "1.5 GiB");
    }

    #[test]
    fn times_read_well() {
        assert_eq!((span(0.0123), span(0.1349)), ("12.3 ms".into(), "135 ms".into()));
        assert_eq!(span(400.0), "6 min 40 s");
        assert_eq!(span(3599.7), "1 h 00 min");
        assert_eq!(wall(13_860.0), "3h 51m");
        assert_eq!(wall(3599.0), "1h 0m");
        assert_eq!(date(0.0), "1970-01-01 00:00 UTC");
        assert_eq!(date(1_709_210_096.0), "2024-02-29 12:34 UTC");
    }

    #[test]
    fn what_is_missing_says_so() {
        assert_eq!(known(None, four), NOT_MEASURED);
        assert_eq!(known(Some(f64::NAN), four), NOT_MEASURED);
        assert_eq!(known(Some(1.25), four), "1.2500");
        assert_eq!(clip("héllo", 2), "hé…");
    }
}
