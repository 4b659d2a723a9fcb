/// The channel of a client.
#pragma once

#include <grpcpp/channel.h>
#include <sys/types.h>

#include <memory>
#include <mutex>
#include <string>

namespace stepwell {

/// Made when it is first needed, and anew after it was dropped. May be used from several threads.
class Connection {
public:
    explicit Connection(std::string address);
    ~Connection();

    /// Throws Failure with invalid_value where the client was made in the parent of this process.
    void check_process() const;
    /// The present channel. Throws Failure with invalid_value also where the client is closed.
    std::shared_ptr<grpc::Channel> channel();
    /// Give up a connection that looks alive and is dead; what is opened next goes over a new one.
    void drop(const std::shared_ptr<grpc::Channel>& channel);
    void close();
    /// Whether this process is a child of the one that connected. gRPC's threads live in the parent alone, so nothing
    /// that was opened there can be used, or even destroyed, here.
    bool forked() const;

private:
    std::string address_;
    pid_t process_;
    std::mutex mutex_;
    std::shared_ptr<grpc::Channel> channel_;
    bool closed_ = false;
};

}  // namespace stepwell
