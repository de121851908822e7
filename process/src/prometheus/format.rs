//! The formats in which a page of metrics can be had.

/// The format of a page of metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
    #[default]
    Text,
    /// OpenMetrics 1.0: the text with exemplars, <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
    OpenMetrics,
    /// Prometheus' protobuf format: with native histograms and exemplars,
    /// <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>.
    Protobuf,
}

impl Format {
    /// The format that a client likes best by its `Accept` headers; of several, the first. It is the text format if it likes
    /// none of them, or says nothing.
    pub fn accepted<'a>(headers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut best = (Self::Text, 0);
        for range in headers.into_iter().flat_map(|header| header.split(',')) {
            if let Some((format, quality)) = Self::of_range(range).filter(|(_, quality)| *quality > best.1) {
                best = (format, quality);
            }
        }
        best.0
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The format of a media range, and its quality in thousandths. `None`: it is of no format that is known.
    fn of_range(range: &str) -> Option<(Self, u16)> {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next()?.to_ascii_lowercase();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let named = |name: &str| {
            let found = parameters.iter().find(|(known, _)| known.trim().eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.trim().trim_matches('"'))
        };
        let format = match media_type.as_str() {
            "application/vnd.google.protobuf"
                if named("proto") == Some("io.prometheus.client.MetricFamily")
                    && named("encoding") == Some("delimited") =>
            {
                Self::Protobuf
            }
            "application/openmetrics-text" if matches!(named("version"), None | Some("1.0.0")) => {
                Self::OpenMetrics
            }
            "text/plain" if matches!(named("version"), None | Some("0.0.4")) => Self::Text,
            "text/*" | "*/*" => Self::Text,
            _ => return None,
        };
        let quality = named("q").map_or(Some(1.0), |text| text.parse::<f64>().ok())?;
        (0.0..=1.0).contains(&quality).then_some((format, (quality * 1000.0) as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_format_that_it_likes_best() {
        const PROTOBUF: &str =
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/html, application/json", Format::Text),
            ("text/plain;version=0.0.4;q=0.5, */*;q=0.1", Format::Text),
            // Prometheus 2 and 3, without and with native histograms.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                &format!("{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5"),
                Format::Protobuf,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            (&format!("{PROTOBUF};q=0.3, text/plain;q=0.9"), Format::Text),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", Format::OpenMetrics),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=0, text/plain;q=0.1", Format::Text),
            ("application/openmetrics-text;q=many", Format::Text),
            ("application/vnd.google.protobuf;encoding=delimited", Format::Text),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                Format::Text,
            ),
        ] {
            assert_eq!(Format::accepted([accept]), format, "{accept}");
        }
        assert_eq!(
            Format::accepted(["text/plain;q=0.1", "application/openmetrics-text"]),
            Format::OpenMetrics
        );
        assert_eq!(Format::accepted([]), Format::Text);
    }
}
