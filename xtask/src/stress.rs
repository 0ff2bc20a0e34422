//! `cargo xtask stress`: the interrupt stress of the tests, with as many interrupts as one has time for.

use anyhow::Result;

#[derive(clap::Args)]
pub(crate) struct StressArgs {
    /// How many interrupts in each delivery (`thread`, `signal`, `poll`; with membarrier and without).
    #[arg(long, default_value = "1e8", value_parser = number)]
    count: u64,
}

/// `100000000` or `1e8`.
fn number(text: &str) -> Result<u64, String> {
    let number = text.parse::<f64>().map_err(|error| error.to_string())?;
    let whole = (1.0..=1e15).contains(&number) && number.fract() == 0.0;
    if whole { Ok(number as u64) } else { Err("expected a whole number, such as 1e8".into()) }
}

/// On real devices, in the virtual machine, it is `tests/vm/55-irq-stress.sh`.
pub(crate) fn run(args: &StressArgs) -> Result<()> {
    let mut test = crate::cargo();
    test.args(["test", "--release", "--locked", "-p", "udrv-tests", "--test", "irq_stress"]);
    test.args(["--", "--nocapture", "--test-threads=1"]).env("UDRV_STRESS", args.count.to_string());
    crate::succeed(&mut test)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn number_in_either_form_is_whole_and_positive() {
        assert_eq!((number("1e8"), number("250")), (Ok(100_000_000), Ok(250)));
        assert!(["0", "1.5", "-1", "1e30", "many"].iter().all(|text| number(text).is_err()));
    }
}
