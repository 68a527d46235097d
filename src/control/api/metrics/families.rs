//! Writes metric families.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::worker::Distribution;

/// A sample of a family with one label: the value of the label, and the value of the sample.
pub(super) type Sample<L, V> = (L, V);

/// Writes families.
pub(super) struct Families<'e, 'w>(pub(super) &'e mut DescriptorEncoder<'w>);

impl Families<'_, '_> {
    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) -> fmt::Result {
        self.family(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn gauges<L: EncodeLabelValue, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        samples: impl IntoIterator<Item = Sample<L, V>>,
    ) -> fmt::Result {
        let family = self.family(name, help, unit, MetricType::Gauge)?;
        encode_each(family, label, samples, |mut sample, value| sample.encode_gauge(&value))
    }

    /// Writes a gauge with two labels.
    pub(super) fn gauges_by_two<'l>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; 2],
        samples: impl IntoIterator<Item = Sample<[&'l str; 2], u64>>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, None, MetricType::Gauge)?;
        let [first, second] = labels;
        samples.into_iter().try_for_each(|([one, two], count)| {
            family.encode_family(&[(first, one), (second, two)])?.encode_gauge(&count)
        })
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    pub(super) fn counters<L: EncodeLabelValue, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        label: &str,
        samples: impl IntoIterator<Item = Sample<L, V>>,
    ) -> fmt::Result {
        let family = self.family(name, help, unit, MetricType::Counter)?;
        encode_each(family, label, samples, |mut sample, value| {
            sample.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// Writes a histogram. `scale` is the number of units of the values per unit of the family.
    #[expect(clippy::cast_precision_loss, reason = "bounds are small; a sum above 2^53 is rounded by less than 1e-15")]
    pub(super) fn histogram<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        (bounds, scale): (&[u64; N], f64),
        values: &Distribution<N>,
    ) -> fmt::Result {
        let finite = bounds.iter().map(|bound| *bound as f64 / scale).zip(values.buckets);
        let buckets: Vec<(f64, u64)> = finite.chain([(f64::INFINITY, values.above)]).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let mut family = self.family(name, help, Some(unit), MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(values.sum as f64 / scale, count, &buckets, None)
    }
}

/// Writes the samples of a family with one label.
fn encode_each<L: EncodeLabelValue, V>(
    mut family: MetricEncoder<'_>,
    label: &str,
    samples: impl IntoIterator<Item = Sample<L, V>>,
    encode: impl Fn(MetricEncoder<'_>, V) -> fmt::Result,
) -> fmt::Result {
    samples.into_iter().try_for_each(|(of, value)| encode(family.encode_family(&[(label, of)])?, value))
}
