#include "core.hpp"
#include "methods.hpp"
#include "packing.hpp"
#include "stepwell/v1/control.pb.h"

namespace stepwell {

namespace {

/// What one parameter takes in a spec beside its name and shape, generously.
constexpr std::size_t parameter_overhead_bytes = 64;

/// One try to create a run: the spec, then, if the server asks for them, the values.
class Creation {
public:
    Creation(const std::string& name, const v1::Spec& spec, const std::vector<Parameter>& parameters, Stream& stream,
             Patience& patience)
        : name_(name), spec_(spec), parameters_(parameters), stream_(stream), patience_(patience) {}

    /// Returns the last response: the run exists, or was created.
    v1::CreateRunResponse carry_out() {
        send_spec();
        bool sent = false;
        while (!ended_) {
            receive();
            if (layout_.last() && !sent) {
                sent = true;
                send_values();
            }
        }
        return last_;
    }

private:
    /// In pieces that fit a message: 100,000 names do not fit one.
    void send_spec() {
        v1::CreateRunRequest request;
        request.set_run(name_);
        *request.mutable_spec() = spec_;
        request.mutable_spec()->clear_parameters();
        std::size_t size = 0;
        for (const auto& parameter : spec_.parameters()) {
            if (size >= range_bytes) {
                send(request);
                request.Clear();
                size = 0;
            }
            *request.mutable_spec()->add_parameters() = parameter;
            size += parameter.name().size() + 10U * static_cast<std::size_t>(parameter.shape_size()) +
                    parameter_overhead_bytes;
        }
        request.set_spec_complete(true);
        send(request);
    }

    void send_values() {
        const Layout layout(layout_);
        Packer packer(value_parts(layout, parameters_));
        std::vector<Piece> pieces;
        v1::CreateRunRequest request;
        packer.next(pieces);
        do {
            request.Clear();
            for (const Piece& piece : pieces) piece.write(*request.add_values());
            request.set_values_complete(!packer.next(pieces));
            send(request);
        } while (!request.values_complete());
    }

    void send(const v1::CreateRunRequest& request) {
        while (!ended_ && !stream_.send(request, patience_.seconds())) receive();
    }

    void receive() {
        v1::CreateRunResponse response;
        if (!stream_.receive(response, patience_.seconds())) {
            fail(ErrorReason::internal,
                 patience_.what() + ": got no end of the creation from the server, expected one; see its log");
        }
        patience_.heard();
        layout_.MergeFrom(response.layout());
        if (response.creation() == v1::CREATION_EXISTS || response.creation() == v1::CREATION_CREATED) {
            ended_ = true;
            last_ = response;
        }
    }

    const std::string& name_;
    const v1::Spec& spec_;
    const std::vector<Parameter>& parameters_;
    Stream& stream_;
    Patience& patience_;
    v1::Layout layout_;
    v1::CreateRunResponse last_;
    bool ended_ = false;
};

}  // namespace

std::pair<v1::Run, bool> create(Line& line, const std::string& name, const v1::Spec& spec,
                                const std::vector<Parameter>& parameters) {
    Patience patience(line.settings, "run '" + name + "': create_run");
    for (;;) {
        Stream stream(line.connection.channel(), method::create_run);
        try {
            const v1::CreateRunResponse last = Creation(name, spec, parameters, stream, patience).carry_out();
            end_politely(stream);
            return {last.run(), last.creation() == v1::CREATION_CREATED};
        } catch (const Break& broken) {
            again(line, stream, patience, broken);
        }
    }
}

}  // namespace stepwell
