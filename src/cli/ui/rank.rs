//! A rank on the command line.

/// Parses a rank.
pub fn parse(text: &str) -> Result<usize, String> {
    match text.parse::<i128>() {
        Ok(rank) if rank < 0 => Err("a rank is 1 or more".to_owned()),
        Ok(rank) => usize::try_from(rank).map_err(|_| "the rank is too large".to_owned()),
        Err(_) => Err(
            "a rank is a number, for example 128; the largest useful one, which captures everything, is the \
                       shorter side of the largest weight, and a larger one is lowered to it"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_rank_is_a_positive_number() {
        assert_eq!(parse("128"), Ok(128));
        assert_eq!(parse("-4"), Err("a rank is 1 or more".to_owned()));
        assert!(parse("full").unwrap_err().contains("for example 128"));
    }
}
