//! Rejected records: bad input is kept, named and never blocks good input.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::decimal::DecimalError;
use crate::time::instant_type;

/// Defines the reason codes once: variant, code in the table, meaning.
macro_rules! reasons {
    ($($variant:ident $code:literal $meaning:literal)*) => {
        /// Why a record was rejected. The code is stable and documented; the message beside it has the particulars.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)*
        }

        impl Reason {
    /// Whether it names a conflict with what was accepted before, which no other configuration mends.
    #[must_use]
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::IdentityConflict | Self::AmendmentConflict)
    }

            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code in the `rejected` table and in answers.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// One sentence for people.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

reasons! {
    NotJson "not_json" "The record is not valid JSON."
    NotUtf8 "not_utf8" "The record is not valid UTF-8."
    NotAnObject "not_an_object" "The record is JSON, but not an object."
    TooDeep "too_deep" "The record is nested deeper than the limit."
    RecordTooLarge "record_too_large" "The record is larger than the limit."
    TooManyFields "too_many_fields" "The record has more fields than the limit."
    DuplicateField "duplicate_field" "A field occurs twice, so that its value is ambiguous."
    MissingSpecversion "missing_specversion" "A CloudEvent without specversion."
    UnsupportedSpecversion "unsupported_specversion" "A CloudEvent of another version than 1.0."
    MissingId "missing_id" "No id, and no identity rule for this connector."
    EmptyId "empty_id" "The id is empty."
    IdNotText "id_not_text" "The id is not a text."
    MissingSource "missing_source" "No source."
    EmptySource "empty_source" "The source is empty."
    SourceNotText "source_not_text" "The source is not a text."
    MissingMeter "missing_meter" "No type (meter)."
    EmptyMeter "empty_meter" "The type (meter) is empty."
    MeterNotText "meter_not_text" "The type (meter) is not a text."
    MissingSubject "missing_subject" "No subject; it is never guessed."
    EmptySubject "empty_subject" "The subject is empty."
    SubjectNotText "subject_not_text" "The subject is not a text."
    FieldTooLong "field_too_long" "An identifying field is longer than the limit."
    ControlCharacter "control_character" "An identifying field holds a control character."
    MissingTime "missing_time" "No time; it is never guessed."
    TimeInvalid "time_invalid" "The time is not RFC 3339 with an offset (or what the mapping declares)."
    TimeTooOld "time_too_old" "The time is before 2000: a clock that was never set."
    TimeInFuture "time_in_future" "The time is further ahead than the allowed clock skew."
    EndInvalid "end_invalid" "The end is not a time."
    EndBeforeTime "end_before_time" "The end is before the time."
    MissingData "missing_data" "A CloudEvent without data."
    DataNotAnObject "data_not_an_object" "The data of a CloudEvent is not a JSON object."
    DataIsBinary "data_is_binary" "The data is base64 or of another media type than JSON."
    MissingQuantity "missing_quantity" "No quantity; it is never guessed."
    QuantityNotANumber "quantity_not_a_number" "The quantity is neither a number nor a numeric text."
    QuantityTooPrecise "quantity_too_precise" "The quantity has more than 18 digits after the point."
    QuantityTooLarge "quantity_too_large" "The quantity has more than 20 digits before the point."
    DimensionInvalid "dimension_invalid" "A declared dimension does not have its declared type."
    AttributeInvalid "attribute_invalid" "A CloudEvents attribute has a name or value that the standard does not allow."
    IdentityIncomplete "identity_incomplete" "A field of the identity rule is missing, so that the record has no identity."
    IdentityConflict "identity_conflict" "The identity was used before by an event with other content."
    AmendmentConflict "amendment_conflict" "The version of an amendment was used before with another new event of the same target."
    TargetInvalid "target_invalid" "A void or amendment without data.target.source and data.target.id."
    VersionInvalid "version_invalid" "An amendment whose data.version is not a whole number from 1."
    AmendedEventMissing "amended_event_missing" "An amendment without the full new event in data.event."
    ChangeUnsupported "change_unsupported" "A void or amendment that is no CloudEvent, or an amendment whose new event is one."
    TopicMismatch "topic_mismatch" "The MQTT topic does not fit the template."
    QosTooLow "qos_too_low" "An MQTT message of QoS 0, which may be lost, on a topic that asks for QoS 1."
    PropertyInvalid "property_invalid" "An MQTT 5 property or content type that cannot be read as a CloudEvent."
    CsvMalformed "csv_malformed" "A CSV row that cannot be read (quotes)."
    CsvFieldCount "csv_field_count" "A CSV row with more or fewer fields than the header."
    ColumnMissing "column_missing" "A file without a column that the mapping needs."
    HeaderInvalid "header_invalid" "A CSV file whose header is empty or names a column twice."
    ColumnTypeUnsupported "column_type_unsupported" "A Parquet column of a type that loses digits or cannot be read as its field."
    FileUnreadable "file_unreadable" "A file that is not of its format."
    FileCompressionCorrupt "file_compression_corrupt" "A compressed file that ends early or is damaged."
    FileTooLarge "file_too_large" "A file larger than the limit."
    FileChanged "file_changed" "A file that changed after it was taken; it was not read again."
}

impl Reason {
    /// The reason for a quantity that could not be read.
    #[must_use]
    pub fn of_quantity(error: DecimalError) -> Self {
        match error {
            DecimalError::TooPrecise => Self::QuantityTooPrecise,
            DecimalError::TooLarge => Self::QuantityTooLarge,
            DecimalError::NotANumber | DecimalError::DivisionByZero => Self::QuantityNotANumber,
        }
    }
}

/// One record that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Index of the record in what was submitted, from 0.
    pub index: u32,
    /// Source, where it could be read.
    pub source: Option<String>,
    /// Id, where it could be read.
    pub id: Option<String>,
    /// Where in its transport the record stood: `line 12`, `topic sites/a/meters/m1`, `event 3`.
    pub position: String,
    /// The documented code.
    pub reason: Reason,
    /// What was wrong, with the value.
    pub message: String,
    /// The record as it came, cut at the record limit.
    pub raw: Vec<u8>,
}

/// Columns: `rejected_at`, `source`, `id`, `connector`, `position`, `reason`, `message`, `raw`, `log_position`.
#[must_use]
pub fn schema() -> SchemaRef {
    let mut fields = logged_schema().fields().to_vec();
    fields.insert(0, Arc::new(Field::new("rejected_at", instant_type(), false)));
    fields.push(Arc::new(Field::new("log_position", DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

/// The columns that travel through the usage log; the frame adds `rejected_at` and `log_position`.
#[must_use]
pub fn logged_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("source", DataType::Utf8, true),
        Field::new("id", DataType::Utf8, true),
        Field::new("connector", DataType::Utf8, false),
        Field::new("position", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
        Field::new("raw", DataType::Binary, false),
    ]))
}

/// The rejections of one connector as a batch of [`logged_schema`].
///
/// # Errors
/// An [`ArrowError`] when the columns pass 2 GiB.
pub fn to_batch<'a>(rejections: impl IntoIterator<Item = (&'a str, &'a Rejection)>) -> Result<RecordBatch, ArrowError> {
    let mut source = StringBuilder::new();
    let mut id = StringBuilder::new();
    let mut connector = StringBuilder::new();
    let mut position = StringBuilder::new();
    let mut reason = StringBuilder::new();
    let mut message = StringBuilder::new();
    let mut raw = BinaryBuilder::new();
    for (name, rejection) in rejections {
        source.append_option(rejection.source.as_deref());
        id.append_option(rejection.id.as_deref());
        connector.append_value(name);
        position.append_value(&rejection.position);
        reason.append_value(rejection.reason.code());
        message.append_value(&rejection.message);
        raw.append_value(&rejection.raw);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(source.finish()),
        Arc::new(id.finish()),
        Arc::new(connector.finish()),
        Arc::new(position.finish()),
        Arc::new(reason.finish()),
        Arc::new(message.finish()),
        Arc::new(raw.finish()),
    ];
    RecordBatch::try_new(logged_schema(), columns)
}
