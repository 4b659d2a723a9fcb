/// A TCP proxy on loopback that cuts and silences connections.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace testing {

/// Forwards to `target` (HOST:PORT) from address(). bytes_mean: after about so many bytes, in both directions together,
/// a connection is cut in the middle of whatever it carries; 0 for never.
class Proxy {
public:
    explicit Proxy(const std::string& target, std::uint32_t seed = 0, double bytes_mean = 0);
    ~Proxy();
    Proxy(const Proxy&) = delete;
    Proxy& operator=(const Proxy&) = delete;

    const std::string& address() const { return address_; }
    /// From now on nothing moves over the connections that there are; new ones are forwarded.
    void mute() { muted_before_ = connections_.load(); }
    /// Nothing moves any more, over new ones neither.
    void mute_all() { muted_before_ = ~std::uint64_t{0}; }
    std::uint64_t cuts() const { return cuts_; }
    std::uint64_t connections() const { return connections_; }

private:
    void accept_all();
    void forward(int near, std::uint64_t number, double budget);

    std::string address_;
    int listener_ = -1;
    int target_port_ = 0;
    double bytes_mean_;
    std::mt19937 random_;
    std::atomic<bool> over_{false};
    std::atomic<std::uint64_t> muted_before_{0}, connections_{0}, cuts_{0};
    std::mutex mutex_;
    std::vector<std::thread> links_;
    std::thread acceptor_;
};

}  // namespace testing
