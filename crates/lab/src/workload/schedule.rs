//! Cron schedules, as CronJobs write them: five fields, or a word such as `@hourly`.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether day of month and day of week are both restricted: then either is enough, as in cron(5).
    either_day: bool,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// How far back a missed time is looked for: a week, in minutes.
const LOOK_BACK: i64 = 7 * 24 * 60;

impl Schedule {
    /// Reads a schedule.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{text}]", fields.len()));
        };
        let any = |field: &str| field.starts_with('*') || field.starts_with('?');
        let mut on = field(weekdays, 0, 7, &WEEKDAYS, 0)?;
        // Sunday is 0 and 7.
        on = (on | on >> 7) & 0x7f;
        Ok(Self {
            minutes: field(minutes, 0, 59, &[], 0)?,
            hours: field(hours, 0, 23, &[], 0)?,
            days: field(days, 1, 31, &[], 0)?,
            months: field(months, 1, 12, &MONTHS, 1)?,
            weekdays: on,
            either_day: !any(days) && !any(weekdays),
        })
    }

    fn is_due(&self, at: DateTime) -> bool {
        let has = |set: u64, bit: i8| set >> bit & 1 == 1;
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        has(self.minutes, at.minute())
            && has(self.hours, at.hour())
            && has(self.months, at.month())
            && if self.either_day { day || weekday } else { day && weekday }
    }

    /// The last time it was due after `after` and not after `now`; at most a week is looked back.
    pub(super) fn last_due(&self, after: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = now.as_second().div_euclid(60);
        (0..LOOK_BACK)
            .map_while(|back| Timestamp::from_second((minute - back) * 60).ok())
            .take_while(|at| *at > after)
            .find(|at| self.is_due(zone.to_datetime(*at)))
    }
}

/// One field as a set of bits: `*`, `*/5`, `1-5`, `mon-fri`, `1,2,10-20/3`.
fn field(text: &str, first: u8, last: u8, names: &[&str], names_from: u8) -> Result<u64, String> {
    let bad = || format!("cannot read `{text}` as part of a schedule ({first} to {last})");
    let number = |word: &str| -> Result<u8, String> {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(word));
        match named {
            Some(at) => Ok(at as u8 + names_from),
            None => word.parse().ok().filter(|n| (first..=last).contains(n)).ok_or_else(bad),
        }
    };
    let mut set = 0_u64;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<u8>().ok().filter(|step| *step > 0).ok_or_else(bad)?),
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (first, last.min(if names.len() == 7 { 6 } else { last })),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, last),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return Err(bad());
        }
        (from..=to).step_by(step.into()).for_each(|bit| set |= 1 << bit);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_and_not_due() {
        // 21 November 2026 is a Saturday.
        let cases = [
            ("* * * * *", "2026-11-21T12:34:00", true),
            ("*/5 * * * *", "2026-11-21T12:34:00", false),
            ("*/5 * * * *", "2026-11-21T12:35:00", true),
            ("30-40/2 8-18 * * *", "2026-11-21T12:34:00", true),
            ("0 9 * * mon-fri", "2026-11-21T09:00:00", false),
            ("0 9 * * SAT", "2026-11-21T09:00:00", true),
            ("0 9 * nov *", "2026-11-21T09:00:00", true),
            ("0 0 1 * 6", "2026-11-21T00:00:00", true),
            ("0 0 1 * 7", "2026-11-22T00:00:00", true),
            ("@hourly", "2026-11-21T12:00:00", true),
            ("@hourly", "2026-11-21T12:01:00", false),
        ];
        for (schedule, at, due) in cases {
            let parsed = Schedule::parse(schedule).unwrap();
            assert_eq!(parsed.is_due(at.parse().unwrap()), due, "{schedule} at {at}");
        }
        for bad in ["", "* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "x * * * *", "@often"] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missed_time_is_found_once() {
        let hourly = Schedule::parse("@hourly").unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (before, now) = (at("2026-11-21T09:30:00Z"), at("2026-11-21T12:10:20Z"));
        let due = hourly.last_due(before, now, &TimeZone::UTC);
        assert_eq!(due, Some(at("2026-11-21T12:00:00Z")));
        assert_eq!(hourly.last_due(due.unwrap(), now, &TimeZone::UTC), None);
    }
}
