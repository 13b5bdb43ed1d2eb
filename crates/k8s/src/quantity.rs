//! Amounts of resources: `100m`, `1.5Gi`, `2e3`. Read and written as Kubernetes' `resource.Quantity` does.

/// An amount cannot be read. The words are Kubernetes' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not begin like a number.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// Its unit is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Its number is none.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

/// How an amount was written, and so is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// An amount, exact to a billionth (finer ones are rounded up, as Kubernetes does).
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    /// Billionths.
    nano: i128,
    form: Form,
}

const NANO: i128 = 1_000_000_000;
/// Amounts beyond 2⁶³-1 are cut to it.
const MOST: i128 = (i64::MAX as i128) * NANO;

impl Quantity {
    /// Reads an amount.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            None => return Err(QuantityError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if part.contains('.') || (whole.is_empty() && part.is_empty()) {
            return Err(if number.is_empty() { QuantityError::Format } else { QuantityError::Number });
        }
        if suffix.contains(|letter: char| !letter.is_ascii_alphanumeric() && !matches!(letter, '+' | '-')) {
            return Err(QuantityError::Format);
        }
        let (form, factor, exponent) = unit(suffix).ok_or(QuantityError::Suffix)?;
        let mut digits: i128 = 0;
        let mut scale = 9 + exponent;
        let mut beyond = false;
        for (index, digit) in whole.bytes().chain(part.bytes()).enumerate() {
            if digits > MOST {
                beyond |= digit != b'0';
                scale += i32::from(index < whole.len());
                continue;
            }
            digits = digits * 10 + i128::from(digit - b'0');
            scale -= i32::from(index >= whole.len());
        }
        let mut nano = digits.saturating_mul(factor);
        while scale > 0 && nano != 0 && nano < MOST {
            nano = nano.saturating_mul(10);
            scale -= 1;
        }
        while scale < 0 && nano != 0 {
            beyond |= nano % 10 != 0;
            nano /= 10;
            scale += 1;
        }
        if beyond {
            nano += 1;
        }
        let nano = nano.min(MOST);
        Ok(Self { nano: if negative { -nano } else { nano }, form })
    }

    /// The amount in billionths: of cores, of bytes.
    #[must_use]
    pub fn nano(&self) -> i128 {
        self.nano
    }

    /// So many whole things.
    #[must_use]
    pub fn of(count: u32) -> Self {
        Self { nano: i128::from(count) * NANO, form: Form::Decimal }
    }

    /// Both together, written as the first was, or as the second if the first is nothing (as Kubernetes adds).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let form = if self.nano == 0 { other.form } else { self.form };
        Self { nano: self.nano.saturating_add(other.nano).clamp(-MOST, MOST), form }
    }

    /// What is left of this without the other, and no less than nothing.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self { nano: self.nano.saturating_sub(other.nano).max(0), form: self.form }
    }
}

/// A unit: how it is written, its factor, its power of ten.
fn unit(suffix: &str) -> Option<(Form, i128, i32)> {
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if let Some(at) = decimal.iter().position(|known| *known == suffix) {
        return Some((Form::Decimal, 1, (i32::try_from(at).ok()? - 3) * 3));
    }
    if let Some(at) = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|known| *known == suffix) {
        return Some((Form::Binary, 1_i128 << (10 * (at + 1)), 0));
    }
    let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (power.abs() < 100).then_some((Form::Exponent, 1, power))
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let (sign, amount) = (if self.nano < 0 { "-" } else { "" }, self.nano.abs());
        if self.form == Form::Binary && amount >= 1024 * NANO {
            // Whole bytes, in the largest unit that divides them.
            let mut whole = amount / NANO + i128::from(amount % NANO != 0);
            let mut power = 0;
            while whole % 1024 == 0 && power < 6 {
                whole /= 1024;
                power += 1;
            }
            return write!(f, "{sign}{whole}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let (mut amount, mut thousands) = (amount, 0);
        while amount % 1000 == 0 && thousands < 9 {
            amount /= 1000;
            thousands += 1;
        }
        if self.form == Form::Exponent {
            return match (thousands - 3) * 3 {
                0 => write!(f, "{sign}{amount}"),
                power => write!(f, "{sign}{amount}e{power}"),
            };
        }
        write!(f, "{sign}{amount}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][thousands as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_are_written_as_kubernetes_does() {
        let cases = [
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            (".5Gi", "512Mi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512", "512"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("0.5Ki", "512"),
            ("-1.50", "-1500m"),
            ("0", "0"),
            ("0.0000000001", "1n"),
            ("+3k", "3k"),
            ("99999999999999999999", "9223372036854775807"),
        ];
        for (given, written) in cases {
            assert_eq!(Quantity::parse(given).unwrap().to_string(), written, "{given}");
        }
        let wrong = [("", QuantityError::Format), ("abc", QuantityError::Format), ("1x", QuantityError::Suffix)];
        for (given, why) in wrong {
            assert_eq!(Quantity::parse(given).unwrap_err(), why, "{given:?}");
        }
    }

    #[test]
    fn amounts_are_added_and_taken_away() {
        let of = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!(of("500m").plus(of("1")).to_string(), "1500m");
        assert_eq!(of("0").plus(of("1Gi")).plus(of("512Mi")).to_string(), "1536Mi");
        assert_eq!(of("2").less(of("500m")).to_string(), "1500m");
        assert_eq!(of("1").less(of("2")).to_string(), "0");
        assert_eq!(Quantity::of(3).to_string(), "3");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(text in "[+-]?[0-9.]{0,12}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,2}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let written = quantity.to_string();
                let again = Quantity::parse(&written).unwrap();
                prop_assert_eq!(again.to_string(), written);
            }
        }
    }
}
