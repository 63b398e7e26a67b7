//! Rows of text for a terminal.

/// In the biggest unit that fits.
pub(crate) fn age(seconds: u128) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Lines whose columns stand below each other.
pub(crate) fn table<const N: usize>(rows: Vec<[String; N]>) -> Vec<String> {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: [String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<String>>().join("  ").trim_end().to_owned()
    };
    rows.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = vec![["A", "B", "C"], ["long", "x", ""], ["y", "longer", "z"]];
        let rows = rows.into_iter().map(|row| row.map(str::to_owned)).collect();
        assert_eq!(table(rows), ["A     B       C", "long  x", "y     longer  z"]);
    }

    #[test]
    fn ages_are_short() {
        assert_eq!([59, 60, 7200, 200_000].map(age), ["59s", "1m", "2h", "2d"]);
    }
}
