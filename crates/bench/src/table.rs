//! What is printed: rows of a Markdown table.

use std::io::Write;

use anyhow::Result;

/// Runs of each measurement; peers take turns with us, run by run.
pub(crate) const RUNS: usize = 5;

/// Prints the head of the table.
pub(crate) fn head(out: &mut impl Write) -> Result<()> {
    Ok(writeln!(out, "| what | median | least | most |\n|---|---|---|---|")?)
}

/// Prints the middle, the least and the most of some runs.
pub(crate) fn row(out: &mut (impl Write + ?Sized), what: &str, values: impl IntoIterator<Item = f64>) -> Result<()> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return Ok(()) };
    Ok(writeln!(out, "| {what} | {} | {} | {} |", figure(values[values.len() / 2]), figure(*least), figure(*most))?)
}

/// Three digits that say something.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Prints `ours / theirs` of the medians, or that the spreads overlap and no ratio can be told.
pub(crate) fn ratio(out: &mut impl Write, what: &str, ours: &[f64], theirs: &[f64]) -> Result<()> {
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    };
    let (ours, theirs) = (sorted(ours), sorted(theirs));
    let (Some(most), Some(their_most)) = (ours.last(), theirs.last()) else { return Ok(()) };
    if ours[0] <= *their_most && theirs[0] <= *most {
        return Ok(writeln!(out, "| {what}: ratio | the spreads overlap | | |")?);
    }
    Ok(writeln!(out, "| {what}: ratio | {:.2} | | |", ours[ours.len() / 2] / theirs[theirs.len() / 2])?)
}

#[cfg(test)]
mod tests {
    use super::{ratio, row};

    #[test]
    fn no_ratio_is_told_where_spreads_overlap() -> anyhow::Result<()> {
        let mut out = Vec::new();
        row(&mut out, "a", [3.0, 1.0, 2000.0])?;
        ratio(&mut out, "apart", &[2.0, 2.2], &[1.0, 1.1])?;
        ratio(&mut out, "together", &[2.0, 4.0], &[3.0, 5.0])?;
        insta::assert_snapshot!(String::from_utf8(out)?, @r"
        | a | 3.00 | 1.00 | 2000 |
        | apart: ratio | 2.00 | | |
        | together: ratio | the spreads overlap | | |
        ");
        Ok(())
    }
}
