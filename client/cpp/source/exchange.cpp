#include "exchange.hpp"

#include <algorithm>

#include "failures.hpp"
#include "wire.hpp"

namespace stepwell {

/// First the ranges, then the rows; a message has either. `next` knows whether another one follows.
class Exchange::Messages {
public:
    explicit Messages(OutgoingUpdate& update) : update_(update) {
        if (!update_.encoded) {
            packers_ = update_.content.packers(range_bytes);
        } else if (!update_.rest || update_.encoded->made().empty()) {
            update_.rest = update_.content.packers(update_.encoded->piece_bytes());
        }
        // At least one message, perhaps empty.
        has_next_ = make();
    }

    /// Write the next message's content; whether another one follows.
    bool next(v1::Stage& stage) {
        for (const Piece& piece : pieces_) piece.write(*stage.add_ranges());
        if (rows_) rows_->write(*stage.add_rows(), rows_begin_, rows_count_);
        has_next_ = make();
        return has_next_;
    }

private:
    bool make() {
        rows_ = nullptr;
        return make_ranges() || make_rows();
    }

    bool make_ranges() {
        pieces_.clear();
        if (!update_.encoded) return next_of(packers_, pieces_);
        EncodedUpdate& encoded = *update_.encoded;
        if (repeated_ < encoded.made().size()) {
            pieces_ = encoded.made()[repeated_++];
            return true;
        }
        std::vector<Piece> plain;
        if (!next_of(*update_.rest, plain)) return false;
        pieces_ = encoded.add(plain);
        ++repeated_;
        return true;
    }

    bool make_rows() {
        const std::vector<RowsPart>& all = update_.content.rows();
        rows_begin_ += rows_count_;
        rows_count_ = 0;
        for (; table_ < all.size(); ++table_, rows_begin_ = 0) {
            const RowsPart& rows = all[table_];
            if (rows_begin_ >= rows.ids.size()) continue;
            rows_ = &rows;
            rows_count_ = std::min(rows.rows_per_message(), rows.ids.size() - rows_begin_);
            return true;
        }
        return false;
    }

    static bool next_of(std::vector<Packer>& packers, std::vector<Piece>& pieces) {
        for (Packer& packer : packers) {
            if (packer.next(pieces)) return true;
        }
        return false;
    }

    OutgoingUpdate& update_;
    std::vector<Packer> packers_;
    std::vector<Piece> pieces_;
    /// How many of the kept messages were given out in this try.
    std::size_t repeated_ = 0;
    const RowsPart* rows_ = nullptr;
    std::size_t table_ = 0, rows_begin_ = 0, rows_count_ = 0;
    bool has_next_ = false;
};

void Exchange::begin(std::uint64_t number) {
    number_ = number;
    done = refused = closing_ = over_ = false;
    staging_ = update_ != nullptr && !answer;
    messages_.reset();
}

bool Exchange::next(v1::WorkRequest& request) {
    request.Clear();
    if (over_) return false;
    request.set_exchange(number_);
    bool last = true;
    if (staging_ && !closing_) {
        v1::Stage& stage = *request.mutable_stage();
        if (!messages_) {
            messages_ = std::make_shared<Messages>(*update_);
            *stage.mutable_header() = update_->header;
        }
        last = !messages_->next(stage);
    }
    if (!last) return true;
    if (staging_) request.mutable_commit();
    if (selected_) *request.mutable_selection() = selected_->selection;
    request.set_last(true);
    over_ = true;
    return true;
}

void Exchange::take(const v1::WorkResponse& response) {
    if (response.exchange() != number_) return;  // late word on an exchange that has been given up
    if (response.has_error()) {
        Error error = decode_error(response.error());
        if (error.reason == ErrorReason::server_stopping) {
            throw Break{false, grpc::StatusCode::UNAVAILABLE, error.message, error};
        }
        refused = true;
        throw Failure{std::move(error)};
    }
    if (response.has_answer()) answer = decode_answer(response.answer());
    if (response.has_parameters()) {
        version = response.parameters().version();
        unchanged = response.parameters().unchanged();
        if (selected_ && !unchanged) selected_->received->begin();
    }
    if (selected_) {
        for (const auto& range : response.ranges()) selected_->received->put(range);
        for (const auto& rows : response.rows()) selected_->received->put(rows);
    }
    done = response.done();
}

}  // namespace stepwell
